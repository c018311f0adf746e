"""Worker processes."""

import os
from pathlib import Path

import pytest

from tests.unit.prepare.name_writer import WriteNames
from vexpress.errors import InputError
from vexpress.prepare.workers import run_workers


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
