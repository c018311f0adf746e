"""Worker processes for preparing a data set: a source that crashes its process costs only its own clips."""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Protocol

from vexpress.errors import InputError
from vexpress.logs import set_up_logging

logger = logging.getLogger(__name__)


class Work(Protocol):
    """What workers do; it is pickled to reach them."""

    def load_models(self): ...

    def prepare(self, source: Path, models, on_clip: Callable[[], None]) -> None:
        """Prepares a source, or records that it failed."""

    def attempt(self, source: Path, models, on_clip: Callable[[], None]) -> None:
        """Prepares a source, or raises `SourceFailed`."""

    def record_failure(self, source: Path, detail: str) -> None: ...


class SourceFailed(Exception):
    """A source ended in an error that nobody expected, and that another attempt may not meet."""


def run_workers(work: Work, sources: list[Path], num_processes: int, show: Callable[[str], None]) -> None:
    """Prepares sources in worker processes, each of which gets the next source when it is ready.

    Args:
        work: what to do with a source.
        sources: in this order.
        num_processes: number of workers, if there are as many sources.
        show: called with "clip" and "source" when one is done.

    Raises:
        InputError: a worker cannot load the models, or ended before its first source.
        OSError: the disk is full.
    """
    context = multiprocessing.get_context("spawn")  # neither CUDA nor onnxruntime survives a fork
    waiting = deque(sources)
    workers: dict[Connection, tuple[multiprocessing.Process, Path | None]] = {}

    def start() -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(work, theirs), daemon=True)
        process.start()
        theirs.close()  # so that its end is seen here
        workers[ours] = process, None

    def clear_up(process: multiprocessing.Process, source: Path | None) -> None:
        process.join()
        detail = f"the process ended with exit code {process.exitcode}"
        if source is not None:
            logger.error("%s: %s, and will be tried again by the next run", source, detail)
            work.record_failure(source, detail)
            show("source")
            if waiting:
                start()
        elif process.exitcode:
            raise InputError(f"{detail} before its work, for lack of memory?; fewer `num_processes` need less")

    try:
        for _ in range(min(num_processes, len(sources))):
            start()
        while workers:
            for connection in wait(list(workers)):
                process, source = workers[connection]
                try:
                    message = connection.recv()
                except (EOFError, ConnectionResetError):  # the process is gone
                    del workers[connection]
                    clear_up(process, source)
                    continue
                if isinstance(message, Exception):
                    raise message
                if message == "clip" or source is not None:
                    show(message)
                if message == "source":
                    workers[connection] = process, waiting.popleft() if waiting else None
                    with contextlib.suppress(BrokenPipeError):  # it is gone, which is seen above
                        connection.send(workers[connection][1])
    finally:
        for process, _ in workers.values():
            process.terminate()
        for process, _ in workers.values():
            process.join()


def follow_parent() -> None:
    """Makes a process end when its parent does, however that ends, and not by Ctrl-C, which reaches both."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _work(work: Work, connection: Connection) -> None:
    """A worker: sends "source" when it is ready for one, and "clip" after each clip; None ends it."""
    import torch  # where it is needed: the parent of workers that do without starts faster

    follow_parent()
    set_up_logging(logging.WARNING)
    torch.set_num_threads(1)
    try:
        models = work.load_models()
        connection.send("source")
        while (source := connection.recv()) is not None:
            work.prepare(source, models, lambda: connection.send("clip"))
            connection.send("source")
    except (InputError, OSError) as error:
        connection.send(error)


def _end_with_parent() -> None:
    """Else a worker whose parent was killed would go on beside the next run."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
