"""Finds the face in each frame of clips: `vexpress extract-face-info`."""

import sys

from vexpress.cli.extract_face_info import main
from vexpress.cli.program import run_program

if __name__ == "__main__":
    sys.exit(run_program(main))
