"""One preparation per folder: a second one would prepare the same videos and remove what the first is working on."""

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from vexpress.devices import process_number
from vexpress.errors import InputError
from vexpress.files import HOST
from vexpress.storage import AnyPath, is_remote

logger = logging.getLogger(__name__)

LOCK_NAME = ".prepare.lock"


def run_name() -> str:
    """A name that the processes of one torchrun share, and no other run has."""
    if process_number("LOCAL_WORLD_SIZE", 0) == process_number("WORLD_SIZE", 1):
        return f"{HOST} {os.getppid()}"  # the torchrun that started them all
    return " ".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"))


class FolderLock:
    """Held by all processes of one run; the system releases it when they end, however they end.

    The first process of a run holds it alone until `share`, so that it can set up the folder; the others wait for that.

    Attributes:
        is_first: this process holds it alone.
    """

    def __init__(self, file: int | None, is_first: bool):
        self._file, self.is_first = file, is_first

    def share(self) -> None:
        """Lets the other processes of this run in."""
        if self.is_first and self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_SH)


@contextlib.contextmanager
def hold_folder(folder: AnyPath, num_processes: int) -> Iterator[FolderLock]:
    """Keeps other preparations out of a folder.

    Args:
        folder: is there.
        num_processes: of this run, as launched by torchrun.

    Raises:
        InputError: another preparation works there, or the folder cannot be written.
    """
    if is_remote(folder):
        logger.warning("%s: a store has no locks; run one preparation into it at a time", folder)
        yield FolderLock(None, is_first=True)
        return
    try:
        file = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror}); change `output_dir`", "output_dir", folder) from error
    try:
        yield FolderLock(file, _lock(file, folder, run_name() if num_processes > 1 else None))
    finally:
        os.close(file)


def _lock(file: int, folder: Path, name: str | None) -> bool:
    """Takes the lock; returns whether this process is the first of its run. `name` is None for a single process."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        if name is None or os.pread(file, 1000, 0) != name.encode():
            problem = "another preparation into this folder is running; wait for it, or change `output_dir`"
            raise InputError(problem, "output_dir", folder) from error
        fcntl.flock(file, fcntl.LOCK_SH)
        return False
    except OSError as error:  # of network file systems without locks
        logger.warning("%s: cannot be locked (%s); run one preparation into it at a time", folder, error.strerror)
        return False
    if name is not None:  # a single process lets nobody in
        os.ftruncate(file, 0)
        os.pwrite(file, name.encode(), 0)
    return True
