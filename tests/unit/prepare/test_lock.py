"""One preparation per folder, whose processes share it."""

import subprocess
import sys
import threading

import pytest

from vexpress.errors import InputError
from vexpress.prepare.lock import hold_folder


def test_a_second_run_is_refused_until_the_first_ends(tmp_path):
    with hold_folder(tmp_path, 1) as lock:
        assert lock.is_first
        lock.share()  # a single process has nobody to share with
        for num_processes in (1, 2):
            with pytest.raises(InputError, match="another preparation into this folder is running"), \
                    hold_folder(tmp_path, num_processes):  # fmt: skip
                pass
    with hold_folder(tmp_path, 2) as lock:
        assert lock.is_first


def test_the_processes_of_one_run_share_it(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setenv("MASTER_PORT", "1111")
    order = []

    def second() -> None:
        with hold_folder(tmp_path, 2) as lock:
            order.append(f"second in, first: {lock.is_first}")
            lock.share()

    with hold_folder(tmp_path, 2) as lock:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.3)
        order.append("set up")
        lock.share()
        thread.join(10)
        assert order == ["set up", "second in, first: False"]
        monkeypatch.setenv("MASTER_PORT", "2222")  # another run
        with pytest.raises(InputError, match="another preparation"), hold_folder(tmp_path, 2):
            pass


def test_a_killed_process_holds_nothing(tmp_path):
    code = (
        "import os, pathlib, signal, sys\nfrom vexpress.prepare.lock import hold_folder\n"
        "with hold_folder(pathlib.Path(sys.argv[1]), 1):\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -9
    with hold_folder(tmp_path, 1) as lock:
        assert lock.is_first


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / ".prepare.lock").mkdir()
    with pytest.raises(InputError, match="output_dir=.*cannot be written"), hold_folder(tmp_path, 1):
        pass
