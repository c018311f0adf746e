"""Extracts keypoints and sound of a video: `vexpress extract-kps`, under its released name."""

import sys

from vexpress.cli.extract_kps import main
from vexpress.cli.program import run_program

if __name__ == "__main__":
    sys.exit(run_program(main))
