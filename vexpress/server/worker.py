"""The thread that takes jobs from the queue, one after the other."""

import contextlib
import logging
import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vexpress.errors import InputError, first_line
from vexpress.server import store as states
from vexpress.server.engine import Engine
from vexpress.server.jobs import Progress, make_video
from vexpress.server.metrics import Metrics
from vexpress.server.problems import Problem
from vexpress.server.requests import DRIVING_KPS, SPOKEN, VideoRequest
from vexpress.server.schema import FILE_FIELDS
from vexpress.server.settings import ServeSettings
from vexpress.server.store import JOB_ID, Job, JobStore
from vexpress.server.turns import StoppedError, Watch
from vexpress.server.uploads import JSON_BODY

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 5
HEARTBEAT_SECONDS = 1.0
POLL_SECONDS = 0.5
RETRY_SECONDS = 2.0  # after an error of the list of jobs, such as a full disk
ABANDONED_SECONDS = 3600  # a folder without a job that nothing was written to for so long; uploads take less
FORMER_NAME = re.compile(r"tmp[a-z0-9_]{8}")
"""Folders beside that of the jobs, in which earlier versions kept the files of a request that is no job."""
FORMER_FILES = {*FILE_FIELDS, JSON_BODY, SPOKEN, DRIVING_KPS, "kps.npz", "kps.safetensors", "kps.pth"}


class Worker:
    """Makes the videos of the queue.

    Args:
        engine: the model.
        store: the list of jobs.
        jobs_dir: a folder per job.
        settings: limits.
        metrics: counted here.
    """

    def __init__(self, engine: Engine, store: JobStore, jobs_dir: Path, settings: ServeSettings, metrics: Metrics):
        self.engine, self.store, self.jobs_dir = engine, store, jobs_dir
        self.settings, self.metrics = settings, metrics
        self.progress: dict[str, Progress] = {}
        self._lost: set[str] = set()  # jobs that run here and are no longer ours
        self._news = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether both threads run, without which nothing is made."""
        return self._thread.is_alive() and self._heart.is_alive()

    def start(self) -> None:
        """Takes up what a former process left, and begins."""
        self._delete_former()
        self.sweep()
        self._thread.start()
        self._heart.start()

    def stop(self) -> None:
        """Ends between two windows; a running job goes back into the queue."""
        self._stopping.set()
        self._news.set()
        if self._thread.is_alive():
            self._thread.join()
            self._heart.join()

    def wake(self) -> None:
        """There is a new job."""
        self._news.set()

    def cancel(self, job_id: str) -> bool:
        """Ends a job that waits or runs; a running one within one window. Its files are deleted.

        Returns:
            Whether it did: a job that has ended by now stays as it is, with its files.
        """
        job = self.store.get(job_id)
        if not self.store.end(job_id, states.CANCELLED):
            return False
        self.metrics.jobs.labels(states.CANCELLED).inc()
        if job_id in self.progress:
            self._lost.add(job_id)
        elif job is not None and job.state != states.RUNNING:  # else its owner deletes them when it is out
            self.delete_files(job_id)
        return True

    def folder(self, job_id: str) -> Path:
        """Where the files of a job are."""
        return self.jobs_dir / job_id

    def delete_files(self, job_id: str) -> None:
        """Deletes a job's folder."""
        shutil.rmtree(self.folder(job_id), ignore_errors=True)

    def sweep(self) -> None:
        """Deletes jobs whose time is over and folders that belong to no job, and takes up what lost its owner."""
        self._delete_old()
        self.store.take_up()

    def _delete_former(self) -> None:
        for folder in self.jobs_dir.parent.iterdir():
            if not FORMER_NAME.fullmatch(folder.name) or folder.is_symlink():
                continue
            with contextlib.suppress(OSError):  # no folder, or one of somebody else
                is_ours = {path.name for path in folder.iterdir()} <= FORMER_FILES
                if is_ours and time.time() - folder.stat().st_mtime > ABANDONED_SECONDS:
                    shutil.rmtree(folder)

    def _delete_old(self) -> None:
        for job_id in self.store.ended_before(time.time() - self.settings.keep_hours * 3600):
            self.delete_files(job_id)
            self.store.remove(job_id)
        known = self.store.ids()
        for folder in self.jobs_dir.iterdir():
            if not JOB_ID.fullmatch(folder.name) or folder.name in known:  # what has another name is not ours
                continue
            if time.time() - folder.stat().st_mtime > ABANDONED_SECONDS:
                self.delete_files(folder.name)

    def _beat(self) -> None:
        """Says that this process lives, and hears of jobs that others have cancelled."""
        while not self._stopping.wait(HEARTBEAT_SECONDS):
            for job_id, progress in list(self.progress.items()):
                try:
                    if not self.store.keep(job_id, progress.as_json()):
                        self._lost.add(job_id)
                except Exception as error:  # a full disk, or a bug, which must not end the thread
                    logger.warning("the list of jobs cannot be told of a job: %s", first_line(error))

    def _run(self) -> None:
        swept = time.monotonic()
        while not self._stopping.is_set():
            try:
                if time.monotonic() - swept > SWEEP_SECONDS:
                    swept = time.monotonic()
                    self.sweep()
                job = self.store.take() if self.engine.is_ready else None
                if job is None:
                    self._news.wait(POLL_SECONDS)
                    self._news.clear()
                else:
                    self._do(job)
            except (OSError, sqlite3.Error) as error:
                logger.warning("the list of jobs and their files cannot be kept: %s; tried again", error)
                self._stopping.wait(RETRY_SECONDS)
            except Exception:  # a bug must not end the thread
                logger.exception("the thread that makes videos goes on")
                self._stopping.wait(RETRY_SECONDS)

    def _do(self, job: Job) -> None:
        began = time.monotonic()

        def check() -> None:
            if job.id in self._lost or self._stopping.is_set():
                raise StoppedError
            if time.monotonic() - began > self.settings.max_job_seconds:
                raise StoppedError(f"took longer than {self.settings.max_job_seconds:g} s, the limit of this service")

        def between() -> None:
            check()
            self.engine.turns.give_way()

        progress = self.progress[job.id] = Progress(Watch(between, check))
        try:
            if not self._insist(lambda: self._has(job)):  # cancelled as it was taken
                return
            folder = self.folder(job.id)
            request = VideoRequest.from_json(job.request, folder)
            result = make_video(request, folder, self.engine, progress, self.settings)
        except StoppedError as stopped:
            if stopped.reason:
                self._end(job, states.FAILED, error={"field": None, "message": stopped.reason})
            else:
                self._insist(lambda: self.store.put_back(job.id))
        except InputError as error:
            self._end(job, states.FAILED, error=Problem.of(error).as_json()["error"])
        except Exception as error:  # a bug or a full disk must not end the thread
            logger.exception("job %s failed", job.id)
            self._end(job, states.FAILED, error={"field": None, "message": _what_happened(error)})
        else:
            self.metrics.seconds_per_frame.observe(result["seconds_per_frame"])
            self._end(job, states.DONE, result=result)
        finally:
            del self.progress[job.id]
            self._lost.discard(job.id)
            now = self.store.get(job.id)
            if now is None or now.state in (states.CANCELLED, states.FAILED):  # nobody can fetch them
                self.delete_files(job.id)

    def _has(self, job: Job) -> bool:
        now = self.store.get(job.id)
        return now is not None and now.state == states.RUNNING

    def _end(self, job: Job, state: str, **facts: Any) -> None:
        if self._insist(lambda: self.store.end(job.id, state, **facts, as_owner=True)):
            self.metrics.jobs.labels(state).inc()

    def _insist(self, use: Callable[[], Any]) -> Any:
        """Reads or writes the list of jobs, as often as it takes: what becomes of a job must not be lost.

        Returns:
            What `use` does; None if the service stops before: the next process takes the job up.
        """
        while True:
            try:
                return use()
            except sqlite3.OperationalError as error:
                logger.warning("the list of jobs cannot be used: %s; tried again", error)
            try:
                self._delete_old()  # a full disk may be full of ours
            except (OSError, sqlite3.Error) as error:
                logger.warning("old jobs cannot be deleted: %s", error)
            if self._stopping.wait(RETRY_SECONDS):
                return None


def _what_happened(error: Exception) -> str:
    """One line for a client, without paths."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return "not enough memory: a smaller size, fewer context_frames or shorter speech need less"
    if isinstance(error, OSError):
        return f"the server cannot write or read its files ({error.strerror or first_line(error)})"
    return f"an error of the server ({type(error).__name__})"
