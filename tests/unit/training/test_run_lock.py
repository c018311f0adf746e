"""One run per folder, whatever has become of the last one."""

import os
import signal
import subprocess
import sys
import time

import pytest

from vexpress.errors import InputError
from vexpress.training.run_lock import LOCK_NAME, hold_run_folder

HOLD = """
import sys, time
from pathlib import Path
from vexpress.training.run_lock import hold_run_folder
with hold_run_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_run_is_refused_until_the_first_ends_even_by_a_kill(tmp_path):
    first = hold(tmp_path / "run")
    for _ in range(2):  # being refused takes nothing from the first
        with pytest.raises(InputError, match=rf"another run is working in it \(process {first.pid} on"):
            hold_run_folder(tmp_path / "run").__enter__()
    first.kill()
    first.wait()
    assert (tmp_path / "run" / LOCK_NAME).exists()
    with hold_run_folder(tmp_path / "run"):
        pass
    assert not (tmp_path / "run" / LOCK_NAME).exists()


def test_children_of_a_killed_run_do_not_hold_its_folder(tmp_path):
    """Data workers live on for some seconds."""
    reader, writer = os.pipe()
    main = os.fork()
    if main == 0:
        with hold_run_folder(tmp_path / "run"):
            worker = os.fork()
            if worker != 0:
                os.write(writer, f"{worker}\n".encode())
            time.sleep(60)
    worker = int(os.read(reader, 100))
    os.kill(main, signal.SIGKILL)
    os.waitpid(main, 0)
    with hold_run_folder(tmp_path / "run"):
        os.kill(worker, 0)  # it is still there
    os.kill(worker, signal.SIGKILL)


def test_a_folder_that_was_made_for_nothing_goes_again(tmp_path):
    for name in ("new", "new/person/run"):
        with hold_run_folder(tmp_path / name):
            pass
        assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with hold_run_folder(tmp_path / "old"):
        pass
    assert (tmp_path / "old").is_dir()


def test_a_file_in_its_place_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match="cannot be written"):
            hold_run_folder(folder).__enter__()
