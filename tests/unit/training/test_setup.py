"""What a run needs and this machine has not is one line."""

import json

import pytest
import torch

from vexpress.errors import InputError
from vexpress.training.config import SolverConfig, TrainConfig
from vexpress.training.setup import build_accelerator, build_optimizer

ENVIRONMENTS = {
    "WORLD_SIZE=abc": {"WORLD_SIZE": "abc"},
    "RANK=abc": {"RANK": "abc"},
    "LOCAL_RANK=-1": {"LOCAL_RANK": "-1"},
    "RANK=3 in the environment: must be below WORLD_SIZE=2": {"RANK": "3", "WORLD_SIZE": "2"},
    "and no MASTER_ADDR": {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1"},
    "MASTER_PORT=x": {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "x"},
}


@pytest.mark.parametrize(("message", "variables"), ENVIRONMENTS.items(), ids=ENVIRONMENTS)
def test_an_environment_that_describes_no_processes(monkeypatch, message, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        build_accelerator(TrainConfig(tracker=None))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_fp16_needs_a_gpu():
    with pytest.raises(InputError, match="solver.mixed_precision=fp16: needs a CUDA device; use bf16 or no"):
        build_accelerator(TrainConfig(tracker=None, solver=SolverConfig(mixed_precision="fp16")))


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("vexpress.training.setup.find_spec", lambda name: None)
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    solver = SolverConfig(deepspeed_config=str(tmp_path / "ds.json"))
    with pytest.raises(InputError, match="DeepSpeed is not installed; pip install deepspeed"):
        build_accelerator(TrainConfig(tracker=None, solver=solver))
    with pytest.raises(InputError, match="tracker=mlflow: is not installed"):
        build_accelerator(TrainConfig(tracker="mlflow"))


def test_nothing_to_train():
    with pytest.raises(InputError, match="module_training: leaves nothing to train in stage_1"):
        build_optimizer(TrainConfig(), [])
