"""Measures generated videos: `vexpress evaluate`."""

import sys

from vexpress.cli.evaluate import main
from vexpress.cli.program import run_program

if __name__ == "__main__":
    sys.exit(run_program(main))
