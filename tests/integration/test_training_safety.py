"""Runs that are killed, started twice, stopped at any moment, on a full disk, or find their files damaged."""

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.clips import write_dataset
from tests.runs import ROOT, assert_equal, error, exported, run, start, wait_for, write_config
from vexpress.training.checkpoints import find_checkpoints, read_progress
from vexpress.training.run_lock import LOCK_NAME

NUM_KILLS = 6
NUM_STEPS = 5


@pytest.fixture(scope="module")
def meta_path(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), num_clips=2)


@pytest.fixture(scope="module")
def forkserver():
    """Processes that have imported everything at their start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.runs"])
    return context


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model_dir, meta_path):
    """The export of a run that nobody has disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    run(write_config(folder, model_dir, meta_path), f"solver.max_train_steps={NUM_STEPS}", "checkpointing_steps=1")
    return exported(folder / "run")


@pytest.fixture(scope="module")
def first_step(tmp_path_factory, model_dir, meta_path):
    """The folder of a run that has made one update."""
    folder = tmp_path_factory.mktemp("first_step")
    run(write_config(folder, model_dir, meta_path), "solver.max_train_steps=1")
    return folder / "run"


def wait_until(condition, process, seconds: float = 60) -> None:
    deadline = time.time() + seconds
    while not condition() and process.is_alive() and time.time() < deadline:
        time.sleep(0.002)


def is_writing(folder: Path) -> bool:
    return any(folder.glob("checkpoints/.step_*.part")) or (folder / ".export.part").exists()


def assert_nothing_hidden(folder: Path) -> None:
    hidden = [path for path in folder.rglob("*") if path.name.startswith(".")]
    assert not hidden


@pytest.mark.slow
def test_killed_again_and_again_while_it_saves(config_path, tmp_path, whole, forkserver):
    overrides = (f"solver.max_train_steps={NUM_STEPS}", "checkpointing_steps=1")
    chance, folder, interrupted = random.Random(0), tmp_path / "run", 0
    for _ in range(NUM_KILLS):
        process = forkserver.Process(target=run, args=(config_path, *overrides))
        process.start()
        wait_until(lambda: is_writing(folder), process)
        time.sleep(chance.uniform(0, 0.15))
        process.kill()
        process.join()
        interrupted += is_writing(folder)
        for checkpoint in find_checkpoints(folder):  # what bears its name is whole
            read_progress(checkpoint)
        if (folder / "export").exists():
            assert exported(folder)
    assert interrupted, "no kill came in the middle of a save"
    assert run(config_path, *overrides).step == NUM_STEPS
    assert_equal(exported(folder), whole)
    assert_nothing_hidden(folder)


@pytest.mark.slow
def test_of_two_runs_at_once_the_second_is_refused(config_path, tmp_path, capsys, forkserver):
    process = forkserver.Process(target=run, args=(config_path, "solver.max_train_steps=10000"))
    process.start()
    wait_until(lambda: find_checkpoints(tmp_path / "run"), process)
    before = (tmp_path / "run" / "config.yaml").stat().st_mtime_ns
    message = error(config_path, capsys)
    assert f"another run is working in it (process {process.pid} on" in message
    assert (tmp_path / "run" / "config.yaml").stat().st_mtime_ns == before
    assert process.is_alive()
    process.kill()
    process.join()
    newest = read_progress(find_checkpoints(tmp_path / "run")[-1]).step
    assert run(config_path, f"solver.max_train_steps={newest + 1}").step == newest + 1  # and at once the next may


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "number"), [("imports", signal.SIGTERM), ("loading", signal.SIGINT)])
def test_a_signal_before_the_first_step_leaves_nothing(config_path, tmp_path, moment, number):
    process = start(config_path)
    if moment == "imports":
        while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
            time.sleep(0.01)
    else:
        wait_for(tmp_path / "run" / LOCK_NAME, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    assert output.strip() == "interrupted: nothing half-written is left"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_launcher_ends_as_its_processes_do(tmp_path):
    (tmp_path / "script.py").write_text("import sys; print('error: a line', file=sys.stderr); sys.exit(2)")
    command = [sys.executable, "-m", "vexpress.cli.launch", "--nproc_per_node", "2", "--master_port", "29613"]
    done = subprocess.run([*command, str(tmp_path / "script.py")], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "error: a line" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("num_before", [0, 2, 4, 9, 25])
def test_a_disk_that_is_full_at_any_write(config_path, tmp_path, capsys, monkeypatch, first_step, num_before):
    shutil.copytree(first_step, tmp_path / "run")
    before, calls, sync = exported(tmp_path / "run"), [], os.fsync

    def full_after(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > num_before:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full_after)
    message = error(config_path, capsys)
    assert "space left on" in message
    assert str(tmp_path / "run") in message
    monkeypatch.undo()
    assert [read_progress(path).step for path in find_checkpoints(tmp_path / "run")][0] == 1
    assert_equal(exported(tmp_path / "run"), before)
    assert_nothing_hidden(tmp_path / "run")


def test_files_that_only_inform_may_be_damaged(config_path, tmp_path, caplog, first_step):
    shutil.copytree(first_step, tmp_path / "run")
    folder = tmp_path / "run"
    for name in ("log.jsonl", "config.yaml", "runs.jsonl", "loss.png", "export/trainer.json"):
        (folder / name).write_bytes(b"{[\0\xff\n" * 999)
    assert run(config_path).step == 2
    assert "settings are not compared" in caplog.text
    assert "damaged lines are dropped" in caplog.text
    assert json.loads((folder / "export" / "trainer.json").read_text())["step"] == 2


def test_a_damaged_checkpoint_names_the_intact_one_and_is_not_resumed(config_path, tmp_path, capsys):
    run(config_path, "checkpointing_steps=1")
    newest = tmp_path / "run" / "checkpoints" / "step_00000002"
    content = bytearray((newest / "optimizer.bin").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "optimizer.bin").write_bytes(content)
    message = error(config_path, capsys)
    assert message.endswith("step_00000001 is intact: delete step_00000002, and the same command resumes from it")
    before = exported(tmp_path / "run")
    shutil.rmtree(newest)  # as told
    assert run(config_path, "checkpointing_steps=1").step == 2
    assert_equal(exported(tmp_path / "run"), before)


def test_a_users_own_copy_is_neither_resumed_nor_counted_nor_removed(config_path, tmp_path):
    run(config_path)
    checkpoints = tmp_path / "run" / "checkpoints"
    for name in ("step_backup", "step_99999999_best", "best"):
        shutil.copytree(checkpoints / "step_00000002", checkpoints / name)
    assert run(config_path, "solver.max_train_steps=4", "checkpointing_steps=1", "keep_checkpoints=1").step == 4
    names = {path.name for path in checkpoints.iterdir()}
    assert names == {"step_00000004", "step_backup", "step_99999999_best", "best"}


def test_what_a_kill_has_left_is_removed_or_put_back(config_path, tmp_path, first_step):
    """Killed between the two moves that put a new export in the place of the former."""
    folder = tmp_path / "run"
    shutil.copytree(first_step, folder)
    before = exported(folder)
    (folder / "export").rename(folder / ".export.former")
    (folder / ".export.part").mkdir()
    shutil.copytree(folder / "checkpoints" / "step_00000001", folder / "checkpoints" / ".step_00000003.part")
    run(config_path, "solver.max_train_steps=1")
    assert_equal(exported(folder), before)
    assert_nothing_hidden(folder)
