"""Trains one stage: `vexpress train`, under its released name."""

import sys

from vexpress.cli.program import run_program
from vexpress.cli.train import main

if __name__ == "__main__":
    sys.exit(run_program(main))
