"""Precision and number of processes do not change what the shipped model makes; and its default run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.demo.clip_figures import follow
from scripts.demo.heldout_clips import load_heldout_clips, regenerate
from tests.demo.pack import PACK_DIR, PACK_PX, load_pipeline, options, pipeline  # noqa: F401
from vexpress.cli import generate as inference
from vexpress.cli.program import run_program
from vexpress.media.keypoints import load_kps
from vexpress.media.video import probe_video, read_frames
from vexpress.options import RETARGET_STRATEGIES

ROOT = Path(__file__).parents[2]
MOST_BYTES = 25 * 10**6


def test_size():
    assert sum(path.stat().st_size for path in PACK_DIR.rglob("*") if path.is_file()) <= MOST_BYTES


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(pipeline, options, dtype):  # noqa: F811
    [clip] = load_heldout_clips(PACK_DIR / "heldout", 24)[2:3]  # half precision takes a CPU ten times as long
    whole, half = (follow([regenerate(maker, clip, options)], [clip])[0] for maker in (pipeline, load_pipeline(dtype)))
    np.testing.assert_allclose(half, whole, atol=0.03)


# ---- programs --------------------------------------------------------------------------------------------------------


def run(*arguments: str) -> int:
    return run_program(lambda: inference.main(list(arguments)))


def test_default_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # no model_ckpts here
    assert run("--num_inference_steps", "2") == 0
    captured = capsys.readouterr()
    assert "the embedded model runs" in captured.err and "output/demo.png" in captured.out
    info = probe_video(tmp_path / "output" / "demo.mp4")
    assert (info.width, info.height, float(info.fps)) == (PACK_PX, PACK_PX, 30)
    assert 4 <= len(list(read_frames(tmp_path / "output" / "demo.mp4"))) / 30 <= 7
    with Image.open(tmp_path / "output" / "demo.png") as sheet:
        assert sheet.width > 1000


def test_what_is_given_goes_before_the_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = inference.parse_arguments(["--motion", "natural"])
    assert args.kps_path is None and args.motion.retarget_strategy is None
    args = inference.parse_arguments(["--kps_path", "mine.npz"])
    assert args.kps_path == "mine.npz" and args.motion.retarget_strategy is None
    args = inference.parse_arguments([])
    assert args.kps_path.endswith("driving_kps.npz") and args.motion.retarget_strategy == "naive_retarget"
    assert (args.output_path, args.contact_sheet_path) == ("output/demo.mp4", "output/demo.png")
    args = inference.parse_arguments(["--output_path", "output/output.mp4"])
    assert (args.output_path, args.contact_sheet_path) == ("output/output.mp4", None)
    args = inference.parse_arguments(["--output_path", "a.mp4", "--contact_sheet_path", "b.png"])
    assert (args.output_path, args.contact_sheet_path) == ("a.mp4", "b.png")


def test_a_model_folder_of_ones_own_counts_more(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model_ckpts").mkdir()
    assert run() == 2
    assert "--reference_image_path is missing" in capsys.readouterr().err
    assert not (tmp_path / "output").exists()


def write_speech(path: Path, seconds: float) -> Path:
    import wave

    with wave.open(str(PACK_DIR / "examples" / "speech.wav")) as file:
        samples = file.readframes(int(seconds * file.getframerate()))
        with wave.open(str(path), "wb") as short:
            short.setparams(file.getparams())
            short.writeframes(samples)
    return path


@pytest.mark.parametrize("strategy", RETARGET_STRATEGIES)
def test_every_strategy_with_the_driving_clip(tmp_path, monkeypatch, strategy):
    monkeypatch.chdir(tmp_path)
    speech = write_speech(tmp_path / "speech.wav", 0.5)
    output = tmp_path / "out.mp4"
    flags = ["--reference_image_path", str(PACK_DIR / "examples" / "portrait.png"), "--audio_path", str(speech)]
    flags += ["--kps_path", str(PACK_DIR / "examples" / "driving_kps.npz"), "--retarget_strategy", strategy]
    assert run(*flags, "--output_path", str(output), "--num_inference_steps", "4") == 0
    frames = np.stack([frame for _, frame in read_frames(output)])
    assert frames.shape == (15, PACK_PX, PACK_PX, 3) and frames.std() > 20


def test_keypoints_of_the_driving_clip_come_from_the_packs_networks(tmp_path):
    program = ROOT / "scripts" / "extract_kps_sequence_and_audio.py"
    arguments = [
        "--video_path",
        PACK_DIR / "examples" / "driving.mp4",
        "--kps_sequence_save_path",
        tmp_path / "kps.npz",
    ]
    arguments += ["--insightface_model_path", PACK_DIR / "insightface_models", "--width", PACK_PX, "--height", PACK_PX]
    result = subprocess.run([sys.executable, program, *map(str, arguments)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found, shipped = load_kps(tmp_path / "kps.npz").kps, load_kps(PACK_DIR / "examples" / "driving_kps.npz").kps
    assert (found - shipped).abs().max() < 1.5  # px


def test_prepare_dataset_with_the_packs_networks(tmp_path):
    """A raw drawn video becomes a data set that training reads."""
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "driving.mp4").write_bytes((PACK_DIR / "examples" / "driving.mp4").read_bytes())
    program = ROOT / "scripts" / "prepare_dataset" / "prepare_dataset.py"
    arguments = ["--input_dir", raw, "--output_dir", tmp_path / "data", "--model_dir", PACK_DIR]
    arguments += ["--min_resolution", 96, "--min_face_px", 30, "--size", PACK_PX]
    result = subprocess.run([sys.executable, program, *map(str, arguments)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(json.loads((tmp_path / "data" / "metadata.json").read_text())) == 1, result.stdout + result.stderr


def test_two_processes_make_the_same_video(tmp_path):
    speech = write_speech(tmp_path / "speech.wav", 1.5)
    frames = {}
    for num_processes in (1, 2):
        output = tmp_path / f"{num_processes}.mp4"
        flags = ["--reference_image_path", PACK_DIR / "examples" / "portrait.png", "--audio_path", speech]
        flags += ["--kps_path", PACK_DIR / "examples" / "driving_kps.npz", "--output_path", output]
        flags += ["--retarget_strategy", "offset_retarget", "--model_dir", PACK_DIR, "--sampling", "joint"]
        launch = [sys.executable, ROOT / "inference.py"]
        if num_processes > 1:
            launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", num_processes]
            launch += [ROOT / "inference.py", "--do_multi_devices_inference"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        result = subprocess.run([*map(str, launch), *map(str, flags)], capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stderr
        frames[num_processes] = np.stack([frame for _, frame in read_frames(output)]).astype(int)
    assert np.abs(frames[1] - frames[2]).max() <= 2
