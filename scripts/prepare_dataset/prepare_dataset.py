"""Makes a training data set of a folder of videos: `vexpress prepare`."""

import sys

from vexpress.cli.prepare import main
from vexpress.cli.program import run_program

if __name__ == "__main__":
    sys.exit(run_program(main))
