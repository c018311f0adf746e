"""Checks every clip of a prepared data set: `vexpress verify`."""

import sys

from vexpress.cli.program import run_program
from vexpress.cli.verify import main

if __name__ == "__main__":
    sys.exit(run_program(main))
