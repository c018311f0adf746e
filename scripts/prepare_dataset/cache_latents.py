"""Encodes the frames of clips ahead of training: `vexpress cache-latents`."""

import sys

from vexpress.cli.cache_latents import main
from vexpress.cli.program import run_program

if __name__ == "__main__":
    sys.exit(run_program(main))
