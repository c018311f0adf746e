"""Encodes the sound of clips: `vexpress extract-audio-embeddings`."""

import sys

from vexpress.cli.extract_audio_embeddings import main
from vexpress.cli.program import run_program

if __name__ == "__main__":
    sys.exit(run_program(main))
