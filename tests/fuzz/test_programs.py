"""Bad inputs to every program: exit code 2 and one line, in a warm process.

The cases are made from the programs' own flags: every number, choice, folder and file in turn is one that cannot be.
"""

import argparse
import contextlib
import importlib
import io
import os
from pathlib import Path

import numpy as np
import pytest

from tests import clips, tiny
from tests.face_models import build_face_models
from vexpress.cli.main import PROGRAMS
from vexpress.cli.parser import ArgumentParser
from vexpress.cli.program import run_program

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "vexpress" / "demo_pack" / "examples"
ELSEWHERE = {"benchmark", "dub", "serve", "train-motion"}  # their flags have tests of their own
NOT_READ = {("generate", "insightface_model_path"), ("generate", "head_motion_path")}  # with keypoints that fit
MOST_LETTERS = 2000


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict[str, list[str]]:
    """For each program, flags with which it would work: of these, one at a time is spoilt."""
    folder = tmp_path_factory.mktemp("world")
    model = tiny.write_model_dir(folder / "model")
    build_face_models(model / "insightface_models")
    meta_path = clips.write_dataset(folder / "data", 1)
    (folder / "out").mkdir()
    config = folder / "stage.yaml"
    config.write_text(f"data:\n  meta_paths: [{meta_path}]\noutput_dir: {folder / 'run'}\n")
    portrait, speech, video = EXAMPLES / "portrait.png", EXAMPLES / "speech.wav", EXAMPLES / "driving.mp4"
    flags = {
        "generate": {"model_dir": model, "reference_image_path": portrait, "audio_path": speech,
                     "output_path": folder / "out" / "a.mp4", "retarget_strategy": "no_retarget",
                     "kps_path": EXAMPLES / "driving_kps.npz", "num_inference_steps": 1, "fps": 2,
                     "image_width": 64, "image_height": 64, "guidance_scale": 1},
        "extract-kps": {"video_path": video, "kps_sequence_save_path": folder / "out" / "k.npz",
                        "insightface_model_path": model / "insightface_models"},
        "download": {"model_dir": folder / "models", "endpoint": "http://127.0.0.1:9"},
        "prepare": {"input_dir": EXAMPLES, "output_dir": folder / "prepared", "model_dir": model},
        "verify": {"meta_path": meta_path},
        "extract-face-info": {"video_path": video, "save_path": folder / "out" / "f.npz", "model_dir": model},
        "extract-audio-embeddings": {"video_path": video, "save_path": folder / "out" / "a.safetensors",
                                     "model_dir": model},
        "cache-latents": {"meta_path": meta_path, "cache_dir": folder / "cache", "vae_path": model / "sd-vae-ft-mse",
                          "width": 32, "height": 32},
        "train": {"config": config},
        "evaluate": {"meta_path": meta_path, "generated_dir": folder / "out", "output_dir": folder / "report"},
    }  # fmt: skip
    return {name: [str(part) for flag, value in given.items() for part in (f"--{flag}", value)]
            for name, given in flags.items()}  # fmt: skip


def flags_of(program: str) -> list[argparse.Action]:
    """The flags of a program that take a value."""
    module = importlib.import_module(f"vexpress.cli.{PROGRAMS[program][0]}")
    with contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit):
        module.main(["--help"])
    return [a for a in ArgumentParser.last._actions if a.option_strings and a.nargs is None]


def bad_values(action: argparse.Action) -> list[str]:
    """Values that this flag can never have."""
    name = action.dest
    if action.choices is not None:
        return ["another", ""]
    if action.type in (int, float):
        return ["x", "", "-999999999", "1e999", *(["nan", "inf"] if action.type is float else ["1.5"])]
    if name.endswith(("save_path", "output_path", "sheet_path", "contact_sheet")):
        return ["OUT/missing/x.mp4", "OUT", "/proc/x.mp4", "OUT/" + "x" * 300 + ".mp4"]
    if name.endswith("output_dir") or name in ("cache_dir", "model_dir"):
        return ["OUT/file"] if name != "model_dir" else ["OUT/missing", "OUT/file"]
    if name.endswith(("_path", "_dir", "config", "_network")):
        return ["OUT/missing", "OUT/empty", "OUT/noise", "OUT/[x]", "OUT/fifo"]
    return []


CASES = [
    (program, action.option_strings[0], value)
    for program in PROGRAMS
    if program not in ELSEWHERE
    for action in flags_of(program)
    if (program, action.dest) not in NOT_READ
    for value in bad_values(action)
]


def test_there_are_many_cases():
    assert len(CASES) >= 300


@pytest.mark.parametrize("program", sorted({program for program, _, _ in CASES}))
def test_bad_inputs_are_one_line(program, world, tmp_path, monkeypatch, capfd):
    if program not in world:
        pytest.skip(f"{program} has tests of its own")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "noise").write_bytes(np.random.default_rng(0).bytes(500))
    os.mkfifo(tmp_path / "fifo")
    module = importlib.import_module(f"vexpress.cli.{PROGRAMS[program][0]}")
    wrong = []
    for _, flag, value in (case for case in CASES if case[0] == program):
        value = value.replace("OUT", str(tmp_path))
        capfd.readouterr()
        try:
            code = run_program(lambda value=value, flag=flag: module.main([*world[program], flag, value]))
        except SystemExit as error:
            code = f"exit {error.code}"
        except BaseException as error:  # noqa: BLE001  a traceback is what is looked for
            code = f"{type(error).__name__}: {error}"
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
        if code != 2 or len(lines) != 1 or len(lines[0]) > MOST_LETTERS:
            wrong.append((flag, value[-60:], code, lines))
    left = {path.name for path in tmp_path.iterdir()} - {
        "file",
        "empty",
        "noise",
        "fifo",
        "output",
        "runs",
    }  # the last two as programs make them
    assert not left
    assert not wrong, "\n".join(map(str, wrong))
