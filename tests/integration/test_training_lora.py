"""Training adapters: what they change, their files, and that cutting a run off does no harm."""

import os
import subprocess
import sys

import pytest
import safetensors
import safetensors.torch
import torch

from tests import tiny
from tests.runs import ROOT, assert_equal, error, largest_difference, run
from vexpress.cli import train
from vexpress.cli.program import run_program
from vexpress.model_folder import ModelPaths
from vexpress.training.config_file import load_config
from vexpress.weights import base_digest, load_adapter, load_networks

TARGETS = (
    r"lora.targets.denoising_unet=['.*\.(attn1_5|attn2)\.', '.*resnets\.0\.conv1']",
    r"lora.targets.reference_net=['.*\.attn1\.']",
    "lora.rank=2",
)
LIKE_SGD = ("solver.adam_epsilon=1", "solver.learning_rate=0.02")


def trained(folder) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "export" / "adapter.safetensors")


def test_an_adapter_is_trained_and_the_base_is_not(config_path, tmp_path, model_dir):
    trainer = run(config_path, *TARGETS, "solver.learning_rate=0.01")
    adapter = load_adapter(tmp_path / "run" / "export" / "adapter.safetensors")
    networks = load_networks(ModelPaths.from_model_dir(model_dir))
    assert adapter.base_model == base_digest(networks) == base_digest(dict(trainer.networks.named_children()))
    assert adapter.rank == 2 and set(adapter.weights) == set(adapter.targets) == {"denoising_unet", "reference_net"}
    assert sorted(path.name for path in (tmp_path / "run" / "export").iterdir()) == [
        "adapter.safetensors",
        "trainer.json",
    ]
    weights = trained(tmp_path / "run")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert all(tensor.any() for tensor in weights.values())  # every part of it was reached by the loss
    assert load_config(tmp_path / "run" / "config.yaml").lora == load_config(config_path, TARGETS).lora
    # of the ReferenceNet's last level, nothing is read, and a stage does not train it
    assert not any(".attn2." in key for key in adapter.weights["reference_net"])


def test_resumed_equals_uninterrupted(config_path, tmp_path):
    extras = (*TARGETS, "solver.ema_decay=0.9", "checkpointing_steps=1")
    run(config_path, f"output_dir={tmp_path / 'whole'}", *extras)
    for num_steps in (1, 2):
        run(config_path, f"output_dir={tmp_path / 'parts'}", *extras, f"solver.max_train_steps={num_steps}")
    assert_equal(trained(tmp_path / "whole"), trained(tmp_path / "parts"))


def test_another_base_model_is_no_continuation(config_path, tmp_path, meta_path, capsys):
    run(config_path, *TARGETS, "solver.max_train_steps=1")
    other = tiny.write_model_dir(tmp_path / "other")
    path = other / "v-express" / "v_kps_guider.safetensors"
    weights = safetensors.torch.load_file(path)
    weights["conv_in.bias"] += 1
    safetensors.torch.save_file(weights, path)
    assert "another base model" in error(config_path, capsys, *TARGETS, f"init.path={other}")


@pytest.mark.long
def test_two_processes_train_as_one_with_twice_the_batch(config_path, tmp_path):
    run(config_path, f"output_dir={tmp_path / 'one'}", *TARGETS, *LIKE_SGD)
    overrides = (f"output_dir={tmp_path / 'two'}", "data.train_bs=1", *TARGETS, *LIKE_SGD)
    environment = {"HOST_GPU_NUM": "2", "CHIEF_PORT": "29531", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["bash", str(ROOT / "train_stage.sh"), str(config_path), *overrides]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert largest_difference(trained(tmp_path / "one"), trained(tmp_path / "two")) < 1e-4  # of fp16


def test_bf16_and_checkpointing_leave_adapters_in_fp32(config_path):
    trainer = run(config_path, *TARGETS, "solver.mixed_precision=bf16", "solver.gradient_checkpointing=true")
    dtypes = {parameter.dtype for parameter in trainer.networks.parameters() if parameter.requires_grad}
    assert dtypes == {torch.float32}
    assert trainer.networks.v_kps_guider.dtype == torch.bfloat16


def test_dry_run_counts_adapters(config_path, capsys):
    arguments = ["--config", str(config_path), "--dry_run", *TARGETS]
    assert run_program(lambda: train.main(arguments)) == 0
    output = capsys.readouterr().out
    assert "v_kps_guider: 0 of" in output and "denoising_unet: 0 of" not in output


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lora.targets.denoising_unet=[nothing]"], "lora.targets.denoising_unet=nothing: matches none of the"),
        (["lora.targets.audio_projection=['.*']", "train_stage=stage_1"], "none of the 0 layers that this stage"),
        (["lora.targets.unet=['.*']"], "lora.targets=unet: is no network; there are reference_net"),
        (["lora.targets.denoising_unet=['(']"], "is no regular expression"),
        (["lora.targets.denoising_unet=attn1"], "must be a list of patterns"),
        (["lora.rank=0"], "lora.rank=0: must be 1 to 1024"),
        (["lora.targets.denoising_unet=['.*']", "init.source=random"], "init.source=random: an adapter belongs to"),
    ],
)
def test_bad_input_is_one_line(config_path, capsys, overrides, message):
    assert message in error(config_path, capsys, *overrides)
