"""The list of jobs, in SQLite, so that it outlives the process."""

import json
import re
import secrets
import sqlite3
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
ENDED = (DONE, FAILED, CANCELLED)
MAX_ATTEMPTS = 3
JOB_ID = re.compile(r"[0-9a-f]{32}")
COLUMNS = ("id", "state", "created", "started", "finished", "attempts", "request", "error", "result")
TABLE = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT UNIQUE NOT NULL, state TEXT NOT NULL, created REAL NOT NULL, started REAL, finished REAL,
    attempts INTEGER NOT NULL, request TEXT NOT NULL, error TEXT, result TEXT
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


class QueueFullError(Exception):
    """As many jobs wait as may."""


class JobStore:
    """Jobs in a file.

    Args:
        path: of the database; made if it is not there.
    """

    def __init__(self, path: Path):
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
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
        """The job that has waited longest, now running."""
        rows = self._run(
            "UPDATE jobs SET state = ?, started = ?, attempts = attempts + 1 WHERE number = "
            f"(SELECT MIN(number) FROM jobs WHERE state = ?) RETURNING {', '.join(COLUMNS)}",
            *(RUNNING, time.time(), QUEUED),
        )
        return _job(rows[0]) if rows else None

    def end(self, job_id: str, state: str, error: dict | None = None, result: dict | None = None) -> bool:
        """Ends a job that has not ended; says whether it did."""
        ended = self._run(
            "UPDATE jobs SET state = ?, finished = ?, error = ?, result = ? WHERE id = ? AND state IN (?, ?) "
            "RETURNING id",
            *(state, time.time(), _text(error), _text(result), job_id, QUEUED, RUNNING),
        )
        return bool(ended)

    def put_back(self, job_id: str) -> None:
        """A running job waits again, in its old place; the attempt does not count."""
        self._run(
            "UPDATE jobs SET state = ?, attempts = attempts - 1 WHERE id = ? AND state = ?", QUEUED, job_id, RUNNING
        )

    def take_up(self) -> None:
        """After a crash: what was running waits again; what brought the process down too often has failed."""
        error = {"field": None, "message": f"the server stopped {MAX_ATTEMPTS} times while this job was running"}
        self._run(
            "UPDATE jobs SET state = ?, finished = ?, error = ? WHERE state = ? AND attempts >= ?",
            *(FAILED, time.time(), json.dumps(error), RUNNING, MAX_ATTEMPTS),
        )
        self._run("UPDATE jobs SET state = ? WHERE state = ?", QUEUED, RUNNING)

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
    for name in ("request", "error", "result"):
        values[name] = None if values[name] is None else json.loads(values[name])
    return Job(**values)
