"""One run per folder: a second one would overwrite and remove the checkpoints of the first."""

import contextlib
import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from vexpress.errors import InputError

logger = logging.getLogger(__name__)

LOCK_NAME = ".lock"
IS_HELD = (errno.EACCES, errno.EAGAIN)
HAS_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # some network file systems


@contextlib.contextmanager
def hold_run_folder(folder: Path) -> Iterator[None]:
    """Keeps other processes' runs out of a folder; for the main process of a run.

    The folder is made if it is missing, with those above it, and removed again if nothing was put into it. The lock is
    the system's: it ends with the process, however that ends, and data workers, which are forked, do not inherit it.

    Raises:
        InputError: another run works there, or the folder cannot be written.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _take_lock(folder)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror}); change `output_dir`", "output_dir", folder) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / LOCK_NAME).unlink(missing_ok=True)  # before another run can lock this file
        os.close(descriptor)
        with contextlib.suppress(OSError):  # not empty: a run
            for path in missing:
                path.rmdir()


def _take_lock(folder: Path) -> int:
    path = folder / LOCK_NAME
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in IS_HELD:
                holder = os.read(descriptor, 1000).decode(errors="replace")
                os.close(descriptor)
                problem = f"another run is working in it ({holder}); wait for it, or change `output_dir`"
                raise InputError(problem, "output_dir", folder) from error
            if error.errno not in HAS_NO_LOCKS:
                os.close(descriptor)
                raise
            logger.warning("%s: cannot be locked (%s); start one run in it at a time", folder, error.strerror)
            return descriptor
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                break
        os.close(descriptor)  # the run that held it has just ended and removed this file
    with contextlib.suppress(OSError):  # a full disk: the lock holds, it only does not say whose it is
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    return descriptor
