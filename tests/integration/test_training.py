"""The trainer on small clips and networks: what it computes, and that cutting it off anywhere does no harm."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from tests import tiny
from tests.clips import write_dataset
from tests.runs import ROOT, assert_equal, error, exported, forget_run, largest_difference, run, start, wait_for
from vexpress.audio_encoders import describe_encoder
from vexpress.cli import generate as inference
from vexpress.cli import train
from vexpress.cli.program import run_program
from vexpress.errors import InputError
from vexpress.model_folder import ModelPaths
from vexpress.models import DenoisingUNet
from vexpress.training.config_file import load_config
from vexpress.training.randomness import random_parts
from vexpress.weights import load_audio_encoder, load_networks

SAMPLES_DIR = tiny.SHARED_DIR / "samples"
LIKE_SGD = ("solver.adam_epsilon=1", "solver.learning_rate=0.02")
"""Updates in proportion to gradients; Adam's own first steps follow their sign, however small they are. Not large ones:
after these the loss is so steep that a second step differs by more than rounding."""


# ---- what is computed ------------------------------------------------------------------------------------------------


def test_an_update_changes_what_the_stage_trains_and_nothing_else(config_path, tmp_path, model_dir):
    for stage in ("stage_1", "stage_2"):
        run(config_path, f"train_stage={stage}", f"output_dir={tmp_path / stage}", "solver.max_train_steps=1")
        networks = load_networks(ModelPaths.from_model_dir(tmp_path / stage / "export"))
        start = load_networks(ModelPaths.from_model_dir(model_dir))
        changed = {
            f"{name}.{key}"
            for name, network in networks.items()
            for key, tensor in network.state_dict().items()
            if not torch.equal(tensor, start[name].state_dict()[key])
        }
        if stage == "stage_1":
            assert not any(name.startswith("audio_projection") for name in changed)
            assert "reference_net.conv_in.weight" in changed
            assert "v_kps_guider.conv_in.weight" in changed
            silenced = {name for name in changed if "attn2" in name or "motion_modules" in name}
            assert all("to_out.0" in name or "proj_out" in name for name in silenced if "denoising_unet" in name)
        else:
            assert all(
                name.startswith("audio_projection") or "attn2" in name or "norm2" in name or "motion_modules" in name
                for name in changed
            )
            assert any("motion_modules" in name for name in changed)
            assert not any("resnets" in name for name in changed)


def test_the_loss_is_weighed_as_configured(config_path):
    losses = {}
    for name, override in (
        ("plain", "seed=42"),
        ("mouth", "data.lip_loss_weight=1"),
        ("motion", "motion_loss_weight=2"),
    ):
        trainer = run(config_path, override, "solver.max_train_steps=1", f"output_dir={config_path.parent / name}")
        losses[name] = json.loads((config_path.parent / name / "log.jsonl").read_text().splitlines()[0])["loss"]
        assert trainer.step == 1
    assert losses["mouth"] < losses["plain"] < losses["motion"]


def test_accumulated_gradients_are_those_of_the_large_batch(config_path, tmp_path):
    large = run(config_path, f"output_dir={tmp_path / 'large'}", *LIKE_SGD)
    small = run(
        config_path,
        f"output_dir={tmp_path / 'small'}",
        "data.train_bs=1",
        "solver.gradient_accumulation_steps=2",
        *LIKE_SGD,
    )
    assert large.step == small.step == 2
    first, second = exported(tmp_path / "large"), exported(tmp_path / "small")
    assert largest_difference(first, second) < 1e-5
    logs = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").open()] for name in ("large", "small")]
    for one, other, tolerance in zip(*logs, (1e-5, 1e-3), strict=True):  # the second is steep
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=tolerance)


def test_two_processes_train_as_one_with_twice_the_batch(config_path, tmp_path):
    run(config_path, f"output_dir={tmp_path / 'one'}", *LIKE_SGD)
    overrides = (f"output_dir={tmp_path / 'two'}", "data.train_bs=1", *LIKE_SGD)
    environment = {"HOST_GPU_NUM": "2", "CHIEF_PORT": "29517", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["bash", str(ROOT / "train_stage.sh"), str(config_path), *overrides]
    environment = {**os.environ, **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert largest_difference(exported(tmp_path / "one"), exported(tmp_path / "two")) < 1e-5


def test_processes_that_see_other_clips_are_told(config_path, monkeypatch, capsys):
    """As nodes do, of which one has a damaged copy."""
    monkeypatch.setattr("vexpress.training.trainer.gather_object", lambda own: [*own, "others"])
    assert "data.meta_paths" in error(config_path, capsys) and "process 1 can use others" in error(config_path, capsys)


def test_launcher_without_torch_says_which_python_it_took():
    environment = {key: value for key, value in os.environ.items() if key != "HOST_GPU_NUM"} | {"PYTHON": "false"}
    command = ["bash", str(ROOT / "train_stage.sh"), "training_configs/stage_1.yaml"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: 'false' cannot import torch;") and done.stderr.count("\n") == 1


def test_gradient_checkpointing_changes_nothing(config_path, tmp_path):
    run(config_path, f"output_dir={tmp_path / 'plain'}", *LIKE_SGD)
    run(config_path, f"output_dir={tmp_path / 'checkpointed'}", "solver.gradient_checkpointing=true", *LIKE_SGD)
    assert largest_difference(exported(tmp_path / "plain"), exported(tmp_path / "checkpointed")) < 1e-5


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.long)])  # or tracing only
def test_compiling_changes_nothing(config_path, tmp_path, monkeypatch, backend):
    compiled = []

    def compile_with(network: torch.nn.Module) -> None:
        compiled.append(type(network).__name__)
        torch.nn.Module.compile(network, backend=backend)

    monkeypatch.setattr(DenoisingUNet, "compile", compile_with)
    run(config_path, f"output_dir={tmp_path / 'plain'}", *LIKE_SGD)
    run(config_path, f"output_dir={tmp_path / 'compiled'}", "solver.compile=true", *LIKE_SGD)
    assert compiled == ["DenoisingUNet"]
    assert largest_difference(exported(tmp_path / "plain"), exported(tmp_path / "compiled")) < 1e-5


def test_bf16_keeps_trained_weights_in_fp32(config_path):
    trainer = run(config_path, "solver.mixed_precision=bf16", "train_stage=stage_2")
    dtypes = {parameter.dtype for parameter in trainer.networks.parameters() if parameter.requires_grad}
    assert dtypes == {torch.float32}
    assert trainer.networks.reference_net.dtype == torch.bfloat16
    assert np.isfinite(json.loads((trainer.folder / "log.jsonl").read_text().splitlines()[-1])["loss"])


def test_muon_trains_and_resumes_and_the_export_says_its_size(config_path, tmp_path):
    muon = ("solver.optimizer=muon", "solver.learning_rate=0.01", "data.audio_drop_rate=0.3", "shared_noise=0.5")
    run(config_path, *muon, f"output_dir={tmp_path / 'whole'}", "solver.max_train_steps=4")
    for num_steps in (2, 4):
        run(config_path, *muon, f"output_dir={tmp_path / 'parts'}", f"solver.max_train_steps={num_steps}")
    assert_equal(exported(tmp_path / "whole"), exported(tmp_path / "parts"))
    model_dir = str(tmp_path / "whole" / "export")
    args = inference.parse_arguments(["--model_dir", model_dir, "--reference_image_path", "a", "--audio_path", "b"])
    assert (args.image_width, args.image_height, args.shared_noise) == (64, 64, 0.5)


def test_exported_average_lags_behind_the_weights(config_path, tmp_path, model_dir):
    run(config_path, f"output_dir={tmp_path / 'last'}")
    run(config_path, f"output_dir={tmp_path / 'mean'}", "solver.ema_decay=0.5")
    start = tiny.v_kps_guider().state_dict()["conv_in.weight"]
    last, mean = (exported(tmp_path / name)["v_kps_guider.conv_in.weight"] for name in ("last", "mean"))
    assert 0 < (mean - start).abs().mean() < (last - start).abs().mean()


def test_random_parts_depend_on_the_sample_alone(config_path):
    config = load_config(config_path)
    both = random_parts(config, [5, 6], (4, 3, 8, 8), 1000)
    one = random_parts(config, [6], (4, 3, 8, 8), 1000)
    assert torch.equal(both.noise[1], one.noise[0])
    assert torch.equal(both.reference_keep[1], one.reference_keep[0])
    assert not torch.equal(both.noise[0], both.noise[1])


@pytest.mark.parametrize("granularity", ["frame", "clip"])
def test_conditions_are_dropped_at_their_rates(config_path, granularity):
    config = load_config(config_path, [f"data.drop_granularity={granularity}", "uncond_ratio=0.1"])
    parts = random_parts(config, list(range(3000)), (1, 4, 1, 1), 1000)
    no_audio = parts.audio_keep.amax(dim=1) == 0
    assert no_audio.float().mean() == pytest.approx(0.1, abs=0.02)
    assert (parts.reference_keep[no_audio].sum() + parts.kps_keep[no_audio].sum()) == 0  # all conditions together
    assert 1 - parts.reference_keep[~no_audio].mean() == pytest.approx(0.2, abs=0.03)
    assert 1 - parts.kps_keep[~no_audio].mean() == pytest.approx(0.5, abs=0.03)
    mixed = (parts.kps_keep.amax(dim=1) != parts.kps_keep.amin(dim=1)).any()
    assert bool(mixed) == (granularity == "frame")
    kept = random_parts(config, list(range(20)), (1, 4, 1, 1), 1000, drop=False)
    assert kept.kps_keep.min() == kept.audio_keep.min() == 1


# ---- cutting off and going on ----------------------------------------------------------------------------------------


def test_killed_and_resumed_equals_uninterrupted(config_path, tmp_path):
    extras = ("solver.ema_decay=0.9", "solver.lr_scheduler=linear", "solver.lr_warmup_steps=3")
    whole = (f"output_dir={tmp_path / 'whole'}", "solver.max_train_steps=4", *extras)
    run(config_path, *whole)
    # the same run, killed without warning after its checkpoint of step 2
    parts = (f"output_dir={tmp_path / 'parts'}", "solver.max_train_steps=4", *extras)
    process = start(config_path, *parts)
    wait_for(tmp_path / "parts" / "checkpoints" / "step_00000002" / "trainer.json", process)
    process.kill()
    process.wait()
    assert not (tmp_path / "parts" / "checkpoints" / "step_00000004").exists()
    assert run(config_path, *parts).step == 4
    assert_equal(exported(tmp_path / "whole"), exported(tmp_path / "parts"))
    logs = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").open()] for name in ("whole", "parts")]
    assert [(entry["step"], entry["loss"]) for entry in logs[0]] == [
        (entry["step"], entry["loss"]) for entry in logs[1]
    ]


def test_a_moving_average_is_neither_dropped_nor_begun_at_resume(config_path, tmp_path, capsys):
    for saved, asked in (("0.9", "null"), ("null", "0.9")):
        folder = f"output_dir={tmp_path / saved}"
        run(config_path, folder, f"solver.ema_decay={saved}", "solver.max_train_steps=1")
        message = error(config_path, capsys, folder, f"solver.ema_decay={asked}", "solver.max_train_steps=2")
        assert "solver.ema_decay" in message


def test_sigterm_saves_and_the_same_command_goes_on(config_path, tmp_path):
    process = start(config_path, "solver.max_train_steps=10000", "checkpointing_steps=10000")
    wait_for(tmp_path / "run" / "log.jsonl", process)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143, output  # so that a script does not go on to the next stage
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    step = json.loads((checkpoint / "trainer.json").read_text())["step"]
    assert 0 < step < 10000
    assert run(config_path, f"solver.max_train_steps={step + 1}", "checkpointing_steps=10000").step == step + 1


def test_only_the_last_checkpoints_are_kept_and_nothing_partial(config_path, tmp_path):
    run(config_path, "solver.max_train_steps=5", "checkpointing_steps=1", "keep_checkpoints=2")
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step_00000004", "step_00000005"]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "checkpoints", "config.yaml", "export", "log.jsonl", "loss.png", "runs.jsonl",
    }  # fmt: skip


def test_a_finished_run_does_nothing_more(config_path, tmp_path):
    run(config_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "export").rglob("*")}
    run(config_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "export").rglob("*")} == before


def test_a_kill_between_checkpoint_and_export_is_made_good(config_path, tmp_path):
    run(config_path)
    before = exported(tmp_path / "run")
    (tmp_path / "run" / "export" / "trainer.json").write_text('{"step": 1, "stage": "stage_3"}')
    (tmp_path / "run" / "export" / "v-express" / "reference_net.safetensors").unlink()
    with open(tmp_path / "run" / "log.jsonl", "a") as log:
        log.write('{"step": 3, "lo')  # a line that was cut off, too
    run(config_path)
    assert_equal(exported(tmp_path / "run"), before)


def test_resuming_with_other_settings_says_what_goes_on_as_saved(config_path, caplog):
    run(config_path)
    run(config_path, "solver.learning_rate=1e-7", "data.flip_rate=0.1", "solver.max_train_steps=3")
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any("solver.learning_rate;" in line and "flip_rate" not in line for line in warnings)


def test_resuming_with_other_clips_says_so(config_path, tmp_path, caplog):
    def run_on(num_clips: int, num_steps: int) -> str:
        write_dataset(tmp_path / "clips", num_clips, num_frames=40)
        caplog.clear()
        run(config_path, f"data.meta_paths=[{tmp_path}/clips/metadata.json]", f"solver.max_train_steps={num_steps}")
        return caplog.text

    run_on(3, 1)
    assert "the run so far saw" not in run_on(3, 2)
    assert re.search(r"the run so far saw 3 clips \(\w+\), this one sees 2 clips \(", run_on(2, 3))

    [last] = (tmp_path / "run" / "checkpoints").glob("step_*3")
    state = json.loads((last / "trainer.json").read_text())
    del state["clips"]  # as earlier versions
    (last / "trainer.json").write_text(json.dumps(state))
    log = run_on(3, 4)
    assert "resuming at step 3" in log and "the run so far saw" not in log


def test_sigterm_to_the_whole_group_of_train_stage_saves(config_path, tmp_path):
    """As a cluster's scheduler sends it: to the shell, the trainer and its workers alike."""
    command = ["bash", str(ROOT / "train_stage.sh"), str(config_path), "solver.max_train_steps=10000"]
    command += ["checkpointing_steps=10000", "data.num_workers=1"]
    environment = {**os.environ, "HOST_GPU_NUM": "1", "PYTHON": sys.executable}
    process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True)
    wait_for(tmp_path / "run" / "log.jsonl", process)
    time.sleep(2)
    os.killpg(process.pid, signal.SIGTERM)
    _, log = process.communicate(timeout=120)
    assert process.returncode == 143, log
    assert len(list((tmp_path / "run" / "checkpoints").glob("step_*"))) == 1


# ---- what a user sees ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_validation_is_the_same_every_time_and_makes_a_video(config_path, tmp_path, precision):
    arguments = ["--config", str(config_path), "validation.steps=1", "validation.num_samples=2"]
    arguments += [f"solver.mixed_precision={precision}", "train_stage=stage_2"]
    arguments += ["validation.num_frames=5", "validation.num_inference_steps=1", "solver.learning_rate=0"]
    forget_run()
    assert run_program(lambda: train.main(arguments)) == 0
    entries = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    first, second = (entry["validation_loss"] for entry in entries if "validation_loss" in entry)
    assert first == second  # the learning rate is zero
    from vexpress.media.video import read_frames

    frames = list(read_frames(tmp_path / "run" / "validation" / "step_00000001.mp4"))
    assert len(frames) == 5
    assert frames[0][1].shape == (64, 128, 3)


def test_dry_run_says_what_would_be_trained(config_path, tmp_path, capsys):
    assert run_program(lambda: train.main(["--config", str(config_path), "--dry_run", "train_stage=stage_2"])) == 0
    output = capsys.readouterr().out
    assert "reference_net: 0 of" in output
    assert "train_stage: stage_2" in output
    assert "GiB per process" in output
    assert not (tmp_path / "run").exists()


def test_run_folder_tells_what_the_run_was(config_path, tmp_path):
    run(config_path)
    header = json.loads((tmp_path / "run" / "runs.jsonl").read_text())
    assert header["torch"] == torch.__version__
    assert sum(str(value).startswith("sha256 ") for value in header.values()) == 6
    assert load_config(tmp_path / "run" / "config.yaml") == load_config(config_path)
    entry = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])
    assert {
        "loss",
        "mouth_loss",
        "grad_norm",
        "lr",
        "seconds_per_step",
        "data_seconds",
        "samples_per_second",
    } <= entry.keys()


def test_bad_input_is_one_line(config_path, tmp_path, capsys):
    cases = {
        "data.meta_paths=[none.json]": "none.json",
        "data.num_frames=100": "none of 3 clips can serve",
        "vae_model_path=nowhere": "vae_model_path=nowhere: no such folder",
        "init.path=nowhere": "nowhere",
        "data.trian_bs=1": "did you mean data.train_bs",
        "data.num_frames=40": "data.num_frames",
        "audio_model_path=nowhere": "audio_model_path=nowhere: no such folder",
        "tracker=wandb": "tracker=wandb: is not installed",
        "solver.lr_scheduler=foo": "solver.lr_scheduler=foo: must be one of",
        "seed=-1": "seed=-1",
        "data.meta_paths=[a": "not valid YAML",
        "solver.mixed_precision=fp16": "solver.mixed_precision=fp16: needs a CUDA device; use bf16 or no",
        "module_training={reference_net: false, denoising_unet: false, v_kps_guider: false, audio_projection: false}": (
            "module_training: leaves nothing to train in stage_3"
        ),
        "solver.fsdp=true": "solver.fsdp several processes",
        "solver.deepspeed_config=none.json": "solver.deepspeed_config",
    }
    for override, message in cases.items():
        assert message in error(config_path, capsys, override), override


def test_the_encoder_that_made_the_data_is_trained_with_and_exported(config_path, tmp_path, capsys):
    networks = tiny.speech_encoder("whisper", vexpress_layers=1)
    for part in networks:
        part.save_pretrained(tmp_path / "whisper")
    made_by = describe_encoder(*networks)
    data = f"data.meta_paths=[{write_dataset(tmp_path / 'data', num_clips=1, encoder=made_by)}]"
    encoder = f"audio_model_path={tmp_path}/whisper"
    message = error(config_path, capsys, encoder)
    assert "metadata.json row 1" in message and "are by wav2vec2 (weights unknown), last layer; needed is" in message
    assert f"are by {made_by}; needed is wav2vec2" in error(config_path, capsys, data)
    run(config_path, data, encoder, "solver.max_train_steps=1")
    loaded = load_audio_encoder(ModelPaths.from_model_dir(tmp_path / "run" / "export").audio_encoder_path)
    assert describe_encoder(*loaded) == made_by


def test_another_stages_folder_is_refused(config_path, tmp_path, capsys):
    run(config_path)
    before = exported(tmp_path / "run")
    message = error(config_path, capsys, "train_stage=stage_2")
    assert "holds checkpoints of stage_3" in message
    assert_equal(exported(tmp_path / "run"), before)


def test_a_loss_that_is_not_finite_names_step_and_samples(config_path, tmp_path, capsys):
    message = error(config_path, capsys, "solver.learning_rate=1", "solver.max_train_steps=200", "noise_offset=10")
    assert "is not finite at step" in message
    assert "clip_" in message
    assert "solver.learning_rate" in message


def test_a_full_disk_leaves_earlier_checkpoints(config_path, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    try:
        run(config_path, f"output_dir={disk / 'run'}")
        before = exported(disk / "run")
        size_kib = 200 * 1024 - sum(path.stat().st_size for path in disk.rglob("*")) // 1024
        (disk / "filler").write_bytes(b"0" * 1024 * max(0, size_kib - 3000))
        message = error(config_path, capsys, f"output_dir={disk / 'run'}", "solver.max_train_steps=4")
        assert "earlier ones are untouched" in message
        assert [path.name for path in (disk / "run" / "checkpoints").iterdir()] == ["step_00000002"]
        assert_equal(exported(disk / "run"), before)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)  # files of it may still be mapped


@pytest.mark.skipif(not SAMPLES_DIR.is_dir(), reason="real clips lie in ../shared/samples, which is not here")
def test_three_stages_on_a_real_clip_then_inference(tmp_path):
    """As the README tells it, with fewer steps."""
    from scripts import make_tiny_models

    make_tiny_models.main(["--output_dir", str(tmp_path / "model_ckpts")])
    clip_dir = SAMPLES_DIR / "training_clip"
    names = {"video": "clip.mp4", "face_info": "face_info.pt", "audio_embeds": "aud_embeds.pt"}
    row = {key: str((clip_dir / name).resolve()) for key, name in names.items()}
    (tmp_path / "metadata.json").write_text(json.dumps([row]))
    for i in (1, 2, 3):
        overrides = [
            f"output_dir={tmp_path}/stage_{i}",
            f"base_model_path={tmp_path}/model_ckpts/stable-diffusion-v1-5",
            f"vae_model_path={tmp_path}/model_ckpts/sd-vae-ft-mse",
            f"audio_model_path={tmp_path}/model_ckpts/wav2vec2-base-960h",
            f"data.meta_paths=[{tmp_path}/metadata.json]",
            "solver.max_train_steps=2",
            "tracker=null",
        ]
        overrides += [f"init.path={tmp_path}/stage_{i - 1}/export"] if i > 1 else []
        run(ROOT / "training_configs" / "tiny_cpu" / f"stage_{i}.yaml", *overrides)
    flags = {
        "--model_dir": tmp_path / "stage_3" / "export",
        "--reference_image_path": SAMPLES_DIR / "clip_a" / "ref.jpg",
        "--audio_path": SAMPLES_DIR / "clip_a" / "aud.mp3",
        "--kps_path": SAMPLES_DIR / "clip_a" / "kps.pth",
        "--retarget_strategy": "no_retarget",
        "--image_width": 64,
        "--image_height": 64,
        "--num_inference_steps": 1,
        "--output_path": tmp_path / "out.mp4",
    }
    inference.main([str(part) for item in flags.items() for part in item])
    assert (tmp_path / "out.mp4").stat().st_size > 0


def test_input_error_is_what_the_trainer_raises(config_path):
    with pytest.raises(InputError):
        run(config_path, "data.meta_paths=[]")


def test_sync_loss_changes_the_update_and_is_logged(config_path, tmp_path):
    syncnet = ROOT / "vexpress" / "demo_pack" / "evaluation" / "syncnet.safetensors"
    longer = ("data.num_frames=6", "solver.max_train_steps=1", "sync_max_timestep=999")
    run(config_path, *longer, f"output_dir={tmp_path / 'without'}")
    run(config_path, *longer, f"output_dir={tmp_path / 'with'}", "sync_loss_weight=1", f"syncnet_path={syncnet}")
    without, with_it = (
        json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[0]) for name in ("without", "with")
    )
    assert "sync_loss" not in without
    assert 0 < with_it["sync_loss"] < 2
    assert with_it["loss"] == pytest.approx(without["loss"] + with_it["sync_loss"], rel=1e-4)
    assert largest_difference(exported(tmp_path / "without"), exported(tmp_path / "with")) > 0
