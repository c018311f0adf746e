"""Running a program: errors become one line and an exit code, at whatever moment they or a signal come."""

import contextlib
import errno
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from vexpress import logs
from vexpress.cli.parser import ArgumentParser
from vexpress.errors import InputError, first_line

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_DEAD_PIPE = 128 + signal.SIGPIPE
RETRY_SECONDS = 3.0


class _Interruption:
    """SIGINT and SIGTERM as a KeyboardInterrupt, so that what is under way cleans up, and a note of which it was.

    Python drops an exception that reaches it in a destructor or a callback, as are run by imports; so the interruption
    is repeated until `run_program` has it. A second signal of the user's ends the process at once.
    """

    def __init__(self):
        self.signal: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupt)

    def _interrupt(self, number: int, frame) -> None:
        if number != signal.SIGALRM:
            self.signal = number
            signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGALRM, self._interrupt)
            signal.setitimer(signal.ITIMER_REAL, RETRY_SECONDS, RETRY_SECONDS)
        raise KeyboardInterrupt

    def end(self) -> None:
        """Stops repeating."""
        signal.setitimer(signal.ITIMER_REAL, 0)


def run_program(main: Callable[[], None]) -> int:
    """Runs a program's main function and turns what a user can cause into one clear line and an exit code.

    Returns:
        0 on success; 2 for bad input, a full disk, a file that cannot be read or written, or too little memory; 130
        after Ctrl-C, 143 after SIGTERM; 141 if nobody reads the output. Anything else is a bug and keeps its traceback.
    """
    ArgumentParser.last = None
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the terminal cannot show is shown escaped
            stream.reconfigure(errors="backslashreplace")
    interruption = _Interruption()
    try:
        main()
        if sys.stdout is not None:  # as it is where it was closed before the start
            sys.stdout.flush()
    except BaseException as error:
        interruption.end()
        if interruption.signal is not None:  # whatever was raised on the way out, this is why
            _say("interrupted: nothing half-written is left")
            return 128 + interruption.signal
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains as it ends
            return EXIT_DEAD_PIPE
        line = _describe(error)
        if line is None:
            raise
        rank = os.environ.get("RANK", "0")
        _say(f"error{'' if rank == '0' else f' (process {rank})'}: {line}")
        return EXIT_BAD_INPUT
    return 0


@contextlib.contextmanager
def resting_collector() -> Iterator[None]:
    """Has the garbage collector rest while modules are imported, which makes much and drops nothing: a fifth faster.

    What they made stays; looked through after each of its turns, it would take the collector 0.4 s each time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody listens
        print(line, file=sys.stderr, flush=True)


def _describe(error: BaseException) -> str | None:
    """What a user can do something about, in one line; None for a bug."""
    if isinstance(error, InputError):
        return worded(error)
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "no space left on the disk" if full else error.strerror or first_line(error)
        where = f": {_with_flag(error.filename)}" if error.filename else ""
        return f"{reason}{where}; {'free space' if full else 'check the file'} or change the path"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return f"not enough memory ({first_line(error)}): a smaller size, shorter input or fewer processes need less"
    return None


def _with_flag(path: str | bytes) -> str:
    """A path, with the flag that gave it or the folder that it is in."""
    path = Path(os.fsdecode(path))
    given = ArgumentParser.last and ArgumentParser.last.parsed
    for name, value in vars(given).items() if given else ():
        if isinstance(value, str | Path) and str(value) not in ("", ".") and ArgumentParser.last.has_flag(name):
            with contextlib.suppress(OSError, ValueError):
                if path.resolve().is_relative_to(Path(value).resolve()):
                    return f"--{name} {path}"
    return str(path)


@contextlib.contextmanager
def torchrun_processes(takes_part: bool = True) -> Iterator[tuple[int, int]]:
    """Joins torchrun's processes, if there are several, for as long as the block lasts; gives rank and number.

    Raises:
        InputError: there are several, and `takes_part` is False.
    """
    from torch import distributed

    from vexpress.devices import process_number

    num_processes = process_number("WORLD_SIZE", 1)
    if num_processes == 1:
        yield 0, 1
        return
    if not takes_part:
        raise InputError("started as several processes: add `do_multi_devices_inference`, or start one")
    distributed.init_process_group("gloo")  # what is shared is in host memory
    try:
        yield distributed.get_rank(), num_processes
    finally:
        distributed.destroy_process_group()


def worded(error: InputError) -> str:
    """An error's line, with fields named as this program's flags."""
    return error.worded(_name_of)


def set_up_logging(level: int = logging.INFO) -> None:
    """Sends log lines to stderr, with fields named as this program's flags."""
    logs.set_up_logging(level, _name_of)


def _name_of(field: str) -> str:
    return ArgumentParser.last.name_of(field) if ArgumentParser.last else field
