"""`python -m vexpress`: the `vexpress` command."""

import sys

from vexpress.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
