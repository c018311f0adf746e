"""Makes a talking video from a portrait and speech: `vexpress generate`, under its released name."""

import sys

from vexpress.cli.generate import main
from vexpress.cli.program import run_program

if __name__ == "__main__":
    sys.exit(run_program(main))
