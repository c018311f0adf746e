"""Stage 4 on small clips and networks: from a model folder to one that needs two steps, cut off and resumed."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.runs import ROOT, assert_equal, error, exported, largest_difference, run
from vexpress.cli import generate as inference
from vexpress.cli import train
from vexpress.cli.program import run_program

TEACHER = "{num_inference_steps: 2, guidance: audio, shared_noise: 1.0, audio_attention_weight: 1.0}"
STAGE_4 = (
    "train_stage=stage_4",
    f"distill.teacher_sampling={TEACHER}",
    "distill.context_overlap=1",
    "distill.num_trajectories=3",
    "noise_offset=0",
    "uncond_ratio=0",
    "data.kps_drop_rate=0",
    "data.reference_drop_rate=0",
    "solver.ema_decay=0.5",
    "solver.learning_rate=1e-3",
)


@pytest.mark.parametrize("objective", ["regression", "truth", pytest.param("consistency", marks=pytest.mark.long)])
def test_cut_off_and_resumed_equals_uninterrupted(config_path, tmp_path, objective):
    settings = (*STAGE_4, f"distill.objective={objective}", "data.train_bs=1", "checkpointing_steps=1")
    run(config_path, *settings, f"output_dir={tmp_path / 'whole'}")
    for num_steps in (1, 2):
        run(config_path, *settings, f"output_dir={tmp_path / 'parts'}", f"solver.max_train_steps={num_steps}")
    assert_equal(exported(tmp_path / "whole"), exported(tmp_path / "parts"))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "whole" / "log.jsonl").open()]
    assert losses == [json.loads(line)["loss"] for line in (tmp_path / "parts" / "log.jsonl").open()]


def test_a_student_comes_nearer_to_its_teacher_and_its_folder_needs_no_flag(config_path, tmp_path):
    settings = ("solver.max_train_steps=6", "solver.ema_decay=null", "data.train_bs=3", "distill.history_rate=0")
    run(config_path, *STAGE_4, *settings)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "log.jsonl").open()]
    assert losses[-1] < 0.8 * losses[0]  # the same three trajectories at each step
    model_dir = str(tmp_path / "run" / "export")
    args = inference.parse_arguments(["--model_dir", model_dir, "--reference_image_path", "a", "--audio_path", "b"])
    options = args.sampling
    assert (options.num_inference_steps, options.guidance_scale, options.sampling) == (2, 1.0, "rolling")
    assert (options.context_frames, options.context_overlap, options.shared_noise) == (2, 1, 1.0)


@pytest.mark.long
def test_two_processes_train_as_one_with_twice_the_batch(config_path, tmp_path):
    settings = (*STAGE_4, "solver.adam_epsilon=1", "solver.max_train_steps=1")
    run(config_path, *settings, f"output_dir={tmp_path / 'one'}")
    command = ["bash", str(ROOT / "train_stage.sh"), str(config_path), *settings]
    command += [f"output_dir={tmp_path / 'two'}", "data.train_bs=1"]
    environment = {"HOST_GPU_NUM": "2", "CHIEF_PORT": "29519", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "two" / "trajectories").glob("*/*.safetensors"))) == 3
    assert largest_difference(exported(tmp_path / "one"), exported(tmp_path / "two")) < 1e-5


def test_dry_run_says_what_the_teacher_takes(config_path, tmp_path, capsys):
    for objective, message in (("regression", "until its 3 trajectories are there"), ("consistency", "moving average")):
        arguments = ["--config", str(config_path), "--dry_run", *STAGE_4, f"distill.objective={objective}"]
        assert run_program(lambda arguments=arguments: train.main(arguments)) == 0
        output = capsys.readouterr().out
        assert "teacher: 2 steps, guidance 3.5" in output
        assert message in output
    train.main(["--config", str(config_path), "--dry_run", *STAGE_4, "distill.objective=truth"])
    assert "teacher: not asked" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_bad_input_is_one_line(config_path, capsys):
    cases = {
        "distill.teacher_path=nowhere": "nowhere",
        "distill.teacher_sampling={speed: 1}": "distill.teacher_sampling.speed: is no sampling option",
        "distill.context_overlap=2": "distill.context_overlap=2: must be below data.num_frames",
        "init.source=random": "init.source=random: stage_4 starts from its teacher",
        "data.num_padding_audio_frames=1": "data.num_padding_audio_frames=1: the teacher has num_pad_audio_frames=2",
    }
    for override, message in cases.items():
        assert message in error(config_path, capsys, *STAGE_4, override), override


def test_bf16_has_a_teacher_in_bf16_and_trained_weights_in_fp32(config_path):
    trainer = run(config_path, *STAGE_4, "distill.objective=consistency", "solver.mixed_precision=bf16")
    assert trainer.objective.teacher.networks.denoising_unet.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in trainer.networks.parameters() if parameter.requires_grad} == {
        torch.float32
    }
