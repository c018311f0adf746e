"""Fetches the released models: `vexpress download`."""

import sys

from vexpress.cli.download import main
from vexpress.cli.program import run_program

if __name__ == "__main__":
    sys.exit(run_program(main))
