"""FSDP over processes without GPUs: what it trains, and that another number of processes goes on."""

import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch.distributed.checkpoint.api import CheckpointException

from tests.integration.test_training import LIKE_SGD
from tests.runs import ROOT, error, exported, largest_difference, run
from vexpress.errors import InputError
from vexpress.training.checkpoints import Progress, write_progress
from vexpress.training.sharded import harmless


def train_sharded(config_path: Path, num_processes: int, *overrides: str) -> subprocess.CompletedProcess:
    command = ["bash", str(ROOT / "train_stage.sh"), str(config_path), "solver.fsdp=true", *LIKE_SGD, *overrides]
    environment = {"HOST_GPU_NUM": str(num_processes), "CHIEF_PORT": "29541", "PYTHON": sys.executable}
    environment = {**os.environ, **environment, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)


@pytest.mark.long
def test_sharded_processes_train_as_one_and_another_number_goes_on(config_path, tmp_path):
    run(config_path, f"output_dir={tmp_path / 'one'}", "data.train_bs=4", *LIKE_SGD)
    folder = tmp_path / "sharded"
    done = train_sharded(config_path, 2, f"output_dir={folder}", "data.train_bs=2", "solver.max_train_steps=1")
    assert done.returncode == 0, done.stderr
    assert len(list((folder / "checkpoints/step_00000001/optimizer_0").glob("*.distcp"))) == 2
    done = train_sharded(config_path, 4, f"output_dir={folder}", "data.train_bs=1")
    assert done.returncode == 0, done.stderr
    assert "resuming at step 1" in done.stderr
    assert largest_difference(exported(tmp_path / "one"), exported(folder)) < 1e-5


@pytest.mark.parametrize("name", [".metadata", "__0.metadata"])  # torch takes the second where the first is missing
def test_metadata_of_a_checkpoint_execute_nothing(tmp_path, name):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    (tmp_path / "optimizer_0").mkdir()
    (tmp_path / "optimizer_0" / name).write_bytes(pickle.dumps(Hostile()))
    message = rf"optimizer_0/{name} is no metadata: it names posix.mkdir"
    with pytest.raises(InputError, match=message), harmless(tmp_path):
        pass
    assert not (tmp_path / "executed").exists()


def test_links_in_a_checkpoint_are_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "optimizer_0").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="optimizer_0 is a link or device"), harmless(tmp_path / "checkpoint"):
        pass


def test_a_damaged_sharded_checkpoint_is_one_line(config_path, capsys, monkeypatch):
    run(config_path, "solver.max_train_steps=1", "checkpointing_steps=1")

    def load_state(*_):
        raise CheckpointException("damaged", {0: (OSError("damaged"), None)})  # which is no Exception

    monkeypatch.setattr(Accelerator, "load_state", load_state)
    assert "does not fit this configuration" in error(config_path, capsys)


def test_values_of_a_checkpoint_execute_nothing(tmp_path):
    torch.save(Path("x"), tmp_path / "value.pt")
    with harmless(tmp_path), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "value.pt", weights_only=False)
    assert torch.load(tmp_path / "value.pt", weights_only=False) == Path("x")


def test_a_packed_checkpoint_is_not_unpacked(config_path, capsys):
    run(config_path, "solver.max_train_steps=1", "checkpointing_steps=1")
    [checkpoint] = (config_path.parent / "run" / "checkpoints").iterdir()
    with zipfile.ZipFile(checkpoint / "schedule.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", bytes(2**27))
    write_progress(checkpoint, Progress(1, 2, "stage_3"))  # with digests that fit
    assert "unpacks to 128 MiB" in error(config_path, capsys)
