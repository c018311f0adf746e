"""The list of jobs, in SQLite, so that it outlives the process, and so that several processes can share the work.

A running job belongs to one process, which says every few seconds that it is alive. A job whose owner is silent waits
again, so nothing is lost with a process.
"""

import json
import os
import re
import secrets
import sqlite3
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vexpress.files import HOST, is_alive

QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
ENDED = (DONE, FAILED, CANCELLED)
MAX_ATTEMPTS = 3
BUSY_SECONDS = 30.0  # to wait while another process writes
JOB_ID = re.compile(r"[0-9a-f]{32}")
LEASE_SECONDS = 15.0
"""A running job whose owner is silent for so long waits again."""
COLUMNS = ("id", "state", "created", "started", "finished", "attempts", "request", "error", "result", "progress")
TABLE = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT UNIQUE NOT NULL, state TEXT NOT NULL, created REAL NOT NULL, started REAL, finished REAL,
    attempts INTEGER NOT NULL, request TEXT NOT NULL, error TEXT, result TEXT, progress TEXT,
    owner TEXT, heard REAL
);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, number);
"""


@dataclass(frozen=True)
class Job:
    """A job as it stands in the list.

    Attributes:
        id: 32 hexadecimal digits, by chance, and so unknown to others.
        state: one of those above.
        created: seconds since 1970; likewise `started`, `finished`.
        attempts: how often it was begun.
        request: what was asked for: options, and files by field.
        error: with state "failed": field and message.
        result: with state "done": facts of the video.
        progress: with state "running": how far its owner was when it was last heard of.
    """

    id: str
    state: str
    created: float
    started: float | None = None
    finished: float | None = None
    attempts: int = 0
    request: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    progress: dict[str, Any] | None = None


class QueueFullError(Exception):
    """As many jobs wait as may."""


class JobStore:
    """Jobs in a file.

    Args:
        path: of the database; made if it is not there.
    """

    def __init__(self, path: Path):
        self.owner = f"{HOST}-{os.getpid()}-{secrets.token_hex(4)}"
        self._lock = threading.Lock()
        path.touch(mode=0o600)  # settings and texts of people; SQLite gives its other files the same mode
        self._db = sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.executescript(TABLE)

    def _run(self, statement: str, *values: Any) -> list[tuple]:
        with self._lock:
            return self._db.execute(statement, values).fetchall()

    def add(self, job_id: str, request: dict[str, Any], max_queue: int) -> None:
        """Puts a job at the end of the queue.

        Raises:
            QueueFullError: `max_queue` jobs wait already.
        """
        # One statement, so that two requests cannot both take the last place.
        added = self._run(
            "INSERT INTO jobs (id, state, created, attempts, request) SELECT ?, ?, ?, 0, ? "
            "WHERE (SELECT COUNT(*) FROM jobs WHERE state = ?) < ? RETURNING id",
            *(job_id, QUEUED, time.time(), json.dumps(request), QUEUED, max_queue),
        )
        if not added:
            raise QueueFullError

    def get(self, job_id: str) -> Job | None:
        """The job of this id."""
        rows = self._run(f"SELECT {', '.join(COLUMNS)} FROM jobs WHERE id = ?", job_id)
        return _job(rows[0]) if rows else None

    def take(self) -> Job | None:
        """The job that has waited longest, now running and this process's."""
        now = time.time()
        rows = self._run(
            "UPDATE jobs SET state = ?, started = ?, heard = ?, owner = ?, attempts = attempts + 1 WHERE number = "
            f"(SELECT MIN(number) FROM jobs WHERE state = ?) RETURNING {', '.join(COLUMNS)}",
            *(RUNNING, now, now, self.owner, QUEUED),
        )
        return _job(rows[0]) if rows else None

    def keep(self, job_id: str, progress: dict[str, Any]) -> bool:
        """Says that this process works on a job, and how far it is; False if it is no longer this process's."""
        kept = self._run(
            "UPDATE jobs SET heard = ?, progress = ? WHERE id = ? AND owner = ? AND state = ? RETURNING id",
            *(time.time(), json.dumps(progress), job_id, self.owner, RUNNING),
        )
        return bool(kept)

    def end(
        self, job_id: str, state: str, error: dict | None = None, result: dict | None = None, as_owner: bool = False
    ) -> bool:
        """Ends a job that has not ended, or with `as_owner` one that this process works on; says whether it did."""
        mine = " AND owner = ?" if as_owner else ""
        ended = self._run(
            "UPDATE jobs SET state = ?, finished = ?, error = ?, result = ?, progress = NULL "
            f"WHERE id = ? AND state IN (?, ?){mine} RETURNING id",
            *(state, time.time(), _text(error), _text(result), job_id, QUEUED, RUNNING),
            *([self.owner] if as_owner else []),
        )
        return bool(ended)

    def put_back(self, job_id: str) -> None:
        """A job of this process waits again, in its old place; the attempt does not count."""
        self._run(
            "UPDATE jobs SET state = ?, attempts = attempts - 1 WHERE id = ? AND state = ? AND owner = ?",
            *(QUEUED, job_id, RUNNING, self.owner),
        )

    def take_up(self) -> None:
        """Jobs of processes that are gone wait again; what brought them down too often has failed."""
        running = self._run("SELECT id, owner, heard, attempts FROM jobs WHERE state = ?", RUNNING)
        for job_id, owner, heard, attempts in running:
            host, process_id, _ = owner.split("-")
            is_gone = host == HOST and process_id != str(os.getpid()) and not is_alive(int(process_id))
            if not is_gone and heard > time.time() - LEASE_SECONDS:
                continue
            message = f"the server stopped {attempts} times while this job was running"
            error = json.dumps({"field": None, "message": message})
            values = (FAILED, time.time(), error) if attempts >= MAX_ATTEMPTS else (QUEUED, None, None)
            self._run(
                "UPDATE jobs SET state = ?, finished = ?, error = ? WHERE id = ? AND state = ? AND owner = ?",
                *(*values, job_id, RUNNING, owner),
            )

    def position(self, job_id: str) -> int:
        """How many jobs a waiting one waits for, the running one included."""
        query = (
            "SELECT COUNT(*) FROM jobs WHERE state = ? "
            "OR (state = ? AND number < (SELECT number FROM jobs WHERE id = ?))"
        )
        return self._run(query, RUNNING, QUEUED, job_id)[0][0]

    def count(self, state: str) -> int:
        """Number of jobs in a state."""
        return self._run("SELECT COUNT(*) FROM jobs WHERE state = ?", state)[0][0]

    def seconds_per_job(self, num: int = 20) -> float | None:
        """Mean time of the last finished jobs."""
        query = (
            "SELECT AVG(finished - started) FROM (SELECT * FROM jobs WHERE state = ? ORDER BY finished DESC LIMIT ?)"
        )
        return self._run(query, DONE, num)[0][0]

    def remove(self, job_id: str) -> None:
        """Forgets a job."""
        self._run("DELETE FROM jobs WHERE id = ?", job_id)

    def ended_before(self, moment: float) -> list[str]:
        """Ids of the jobs that ended before a moment, in seconds since 1970."""
        query = f"SELECT id FROM jobs WHERE state IN ({', '.join('?' * len(ENDED))}) AND finished < ?"
        return [row[0] for row in self._run(query, *ENDED, moment)]

    def ids(self) -> set[str]:
        """All ids."""
        return {row[0] for row in self._run("SELECT id FROM jobs")}

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._db.close()


def new_job_id() -> str:
    """An id that nobody can guess."""
    return secrets.token_hex(16)


def _text(value: dict | None) -> str | None:
    return None if value is None else json.dumps(value)


def _job(row: tuple) -> Job:
    values = dict(zip(COLUMNS, row))
    for name in ("request", "error", "result", "progress"):
        values[name] = None if values[name] is None else json.loads(values[name])
    return Job(**values)
