"""Worker processes. This file imports little, since each worker imports it."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from vexpress.errors import InputError
from vexpress.prepare.workers import run_workers


@dataclass(frozen=True)
class WriteNames:
    """Work that writes a file per source, and does not survive the source "crash"."""

    folder: Path
    error: str | None = None

    def load_models(self):
        if self.error:
            raise InputError(self.error)

    def prepare(self, source, models, on_clip):
        if source.name == "crash":
            os._exit(7)
        (self.folder / source.name).touch()
        on_clip()

    def record_failure(self, source, detail):
        (self.folder / f"failed {source.name}").write_text(detail)


def test_workers_survive_a_source_that_crashes_them(tmp_path):
    events = []
    sources = [Path(name) for name in ("a", "crash", "b")]
    run_workers(WriteNames(tmp_path), sources, 2, events.append)
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "failed crash"]
    assert "exit code 7" in (tmp_path / "failed crash").read_text()
    assert sorted(events) == ["clip"] * 2 + ["source"] * 3


def test_an_error_of_a_worker_reaches_the_user(tmp_path):
    with pytest.raises(InputError, match="no such model"):
        run_workers(WriteNames(tmp_path, "no such model"), [Path("a")], 1, print)
    assert os.listdir(tmp_path) == []
