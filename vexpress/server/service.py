"""All that a service holds: the model, the list of jobs, the worker and the examples."""

import asyncio
import contextlib
import logging
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vexpress.errors import InputError, first_line
from vexpress.server import store as states
from vexpress.server.engine import Engine
from vexpress.server.examples import find_examples
from vexpress.server.metrics import Metrics
from vexpress.server.problems import Problem
from vexpress.server.requests import VideoRequest, check_files, collect, copy_examples
from vexpress.server.settings import ServeSettings
from vexpress.server.store import Job, JobStore, QueueFullError, new_job_id
from vexpress.server.uploads import BYTES_PER_MB, read_json
from vexpress.server.worker import Worker

logger = logging.getLogger(__name__)

DEFAULT_JOB_SECONDS = 10
CHECKS_AT_ONCE = 2  # requests whose files are read into memory


class Service:
    """The parts of a service, and what they do together.

    Args:
        engine: the model, not loaded yet.
        settings: limits and places.

    Raises:
        InputError: another service uses `data_dir`, or it cannot be written.
    """

    def __init__(self, engine: Engine, settings: ServeSettings):
        self.engine, self.settings = engine, settings
        self.data_dir = Path(settings.data_dir).resolve()
        self.jobs_dir = self.data_dir / "jobs"
        try:
            # Faces and voices of people. A folder that was there before keeps its mode: it may hold more than ours.
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.jobs_dir.mkdir(mode=0o700, exist_ok=True)
            self.store = JobStore(self.data_dir / "jobs.sqlite")
        except (OSError, sqlite3.Error) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            raise InputError(f"cannot be written ({reason})", "data_dir", settings.data_dir) from error
        self.metrics = Metrics()
        self.examples = find_examples(engine.model_dir, self.data_dir / "examples")
        self.worker = Worker(engine, self.store, self.jobs_dir, settings, self.metrics)
        self.checks = asyncio.Semaphore(CHECKS_AT_ONCE)
        self.streams = threading.BoundedSemaphore(max(1, settings.max_streams))
        self.num_streams = 0
        self.num_coming = 0  # requests whose files are coming in
        self.failure: str | None = None
        self._loader = threading.Thread(target=self._load, name="load", daemon=True)

    def start(self) -> None:
        """Loads the model, while the page can be seen already, and takes up old jobs."""
        self.worker.start()
        self._loader.start()

    def stop(self) -> None:
        """Ends; a running job is taken up by the next process."""
        self.worker.stop()
        self._loader.join()
        self.store.close()

    def _load(self) -> None:
        try:
            self.engine.load()
            self.worker.wake()
        except InputError as error:
            self.failure = Problem.of(error).message
            logger.error("the model cannot be loaded: %s", error)
        except Exception as error:
            self.failure = f"the model cannot be loaded ({type(error).__name__})"
            logger.exception("the model cannot be loaded")
        portraits = self.examples.files["portrait"]
        if self.failure is None and portraits and self.settings.max_streams:
            try:
                self.engine.warm_up(next(iter(portraits.values())))
            except InputError as error:  # a model that is not for this face, say; jobs may still work
                logger.warning("the speed of live streams cannot be measured: %s", error)

    @contextlib.contextmanager
    def coming(self) -> Iterator[None]:
        """Counts a request, for `check_room`, while its files are coming in; used by the event loop."""
        self.num_coming += 1
        try:
            yield
        finally:
            self.num_coming -= 1

    def check_queue(self) -> None:
        """Raises a Problem if the queue is full (429)."""
        if self.store.count(states.QUEUED) >= self.settings.max_queue:
            raise self._full()

    def check_room(self) -> None:
        """Raises a Problem if the room for files is full (507).

        Each other request that is coming in counts as the largest that is allowed.
        """
        others = (self.num_coming - 1) * self.settings.max_upload_mb * BYTES_PER_MB
        if self._kept_bytes() + others >= self.settings.max_data_gb * 1e9:
            self.metrics.refused.labels("507").inc()
            raise Problem(507, f"{self.settings.max_data_gb:g} GB of files are kept already; try again later")

    def _kept_bytes(self) -> int:
        """Size of all files of jobs, and of requests that are coming in."""
        total = 0
        for folder, _, names in os.walk(self.jobs_dir):
            for name in names:
                with contextlib.suppress(OSError):  # deleted meanwhile
                    total += os.lstat(os.path.join(folder, name)).st_size
        return total

    def _full(self) -> Problem:
        seconds = round(self.store.seconds_per_job() or DEFAULT_JOB_SECONDS) or 1
        self.metrics.refused.labels("429").inc()
        return Problem(
            429, f"{self.settings.max_queue} jobs wait already; try again later", headers={"Retry-After": str(seconds)}
        )

    def new_folder(self) -> tuple[str, Path]:
        """An id for a job, and its folder, which no one else has."""
        job_id = new_job_id()
        folder = self.worker.folder(job_id)
        folder.mkdir(mode=0o700)
        return job_id, folder

    @contextlib.contextmanager
    def passing_folder(self) -> Iterator[Path]:
        """A folder for files of a request that becomes no job; counted and swept as those of jobs are."""
        _, folder = self.new_folder()
        try:
            yield folder
        finally:
            self.discard(folder)

    def check(self, request: VideoRequest) -> None:
        """Finds out whether a request can be made a video of.

        Raises:
            InputError: it cannot.
        """
        check_files(request, self.settings)
        self.engine.prepare(request.prepared_without_motion(self.settings), request.options)

    def submit(self, job_id: str, folder: Path, form: dict[str, str] | None) -> Job:
        """Checks a request and puts it into the queue.

        Args:
            job_id: of the new job; likewise its `folder`, which holds what was sent.
            form: what `receive_request` gave.

        Raises:
            InputError: it cannot be made a video of.
            Problem: a file is too large, or the queue is full.
        """
        values = read_json(folder, self.settings) if form is None else form
        is_text = form is not None
        request = collect(values, folder, is_text, self.engine.defaults, self.examples, self.settings)
        self.check(request)
        request = copy_examples(request, folder)
        try:
            self.store.add(job_id, request.as_json(), self.settings.max_queue)
        except QueueFullError as error:
            raise self._full() from error
        self.worker.wake()
        return self.store.get(job_id)

    def discard(self, folder: Path) -> None:
        """Deletes the folder of a request that has become no job."""
        shutil.rmtree(folder, ignore_errors=True)

    def describe(self, job: Job) -> dict[str, Any]:
        """A job for its client."""
        progress = self.worker.progress.get(job.id)
        position = self.store.position(job.id) if job.state == states.QUEUED else None
        return {
            "id": job.id,
            "state": job.state,
            "created": job.created,
            "started": job.started,
            "finished": job.finished,
            "queue_position": position,
            "progress": (progress.as_json() if progress else job.progress) if job.state == states.RUNNING else None,
            "error": job.error,
            "video": job.result,
        }

    def delete(self, job: Job) -> str:
        """Cancels a job that has not ended, and forgets one that has; gives its new state.

        One that ends at this moment keeps what it has become, since it was not asked to be forgotten.
        """
        if job.state in states.ENDED:
            self.worker.delete_files(job.id)
            self.store.remove(job.id)
            return "deleted"
        if self.worker.cancel(job.id):
            return states.CANCELLED
        now = self.store.get(job.id)
        return "deleted" if now is None else now.state

    def refresh(self, metrics: Metrics) -> None:
        """Sets what is not counted."""
        metrics.queue.set(self.store.count(states.QUEUED))
        metrics.running.set(self.store.count(states.RUNNING))
        metrics.streams.set(self.num_streams)
        if self.engine.speed.factor is not None:
            metrics.live_factor.set(self.engine.speed.factor)
