"""Measures speed and memory: `vexpress benchmark`."""

import sys

from vexpress.cli.benchmark import main
from vexpress.cli.program import run_program

if __name__ == "__main__":
    sys.exit(run_program(main))
