"""Running a program: errors become one line and an exit code."""

import errno
import logging
import os
import signal
import sys
from collections.abc import Callable

from vexpress import logs
from vexpress.cli.parser import ArgumentParser
from vexpress.errors import InputError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def run_program(main: Callable[[], None]) -> int:
    """Runs a program's main function and turns what a user can cause into one clear line and an exit code.

    Returns:
        0 on success, 2 for bad input, a full disk or a file that cannot be read or written, 130 after Ctrl-C. Anything
        else is a bug and keeps its traceback.
    """
    ArgumentParser.last = None
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it, too, cleans up
    try:
        main()
    except InputError as error:
        rank = os.environ.get("RANK", "0")
        who = "" if rank == "0" else f" (process {rank})"
        print(f"error{who}: {worded(error)}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "no space left on the disk"
        elif error.filename and error.strerror:
            reason = error.strerror
        else:
            raise
        print(f"error: {reason}: {error.filename or 'output'}; free space or change the path", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted: nothing half-written is left", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def worded(error: InputError) -> str:
    """An error's line, with fields named as this program's flags."""
    return error.worded(_name_of)


def set_up_logging(level: int = logging.INFO) -> None:
    """Sends log lines to stderr, with fields named as this program's flags."""
    logs.set_up_logging(level, _name_of)


def _name_of(field: str) -> str:
    return ArgumentParser.last.name_of(field) if ArgumentParser.last else field
