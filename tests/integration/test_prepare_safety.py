"""Preparation that is killed, started twice or out of disk space, and what its programs must not overwrite."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.integration.prepare_runs import (
    LIMITS,
    SCRIPTS_DIR,
    arguments_of,
    make_video,
    records_of,
    rejections_of,
    run_script,
    write_models,
)
from vexpress.cli import extract_audio_embeddings
from vexpress.cli.program import run_program
from vexpress.data.formats import load_face_info, load_metadata
from vexpress.errors import InputError
from vexpress.media.video import read_frames

DEADLINE_SECONDS = 120


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Flags that name a face model folder and an audio encoder folder."""
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def few_dir(tmp_path_factory):
    """Three short videos, of which two serve."""
    folder = tmp_path_factory.mktemp("few")
    make_video(folder / "a.mp4", 4)
    make_video(folder / "b.mp4", 2)
    make_video(folder / "c.mp4", 4)
    return folder


def start(flags: dict[str, object], folder: Path) -> subprocess.Popen:
    """Starts prepare_dataset.py."""
    command = [sys.executable, SCRIPTS_DIR / "prepare_dataset.py", *arguments_of(flags)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=folder)


def wait_for(pattern: str, folder: Path, process: subprocess.Popen) -> None:
    """Waits until something in the folder has such a name."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not any(folder.glob(pattern)):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def hidden_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob(".*")}


@pytest.mark.slow
def test_a_second_run_is_refused_and_signals_and_kills_lose_nothing(tmp_path, few_dir, models, capsys):
    out_dir = tmp_path / "out"
    flags = {**LIMITS, **models, "input_dir": few_dir, "output_dir": out_dir, "device": "cpu"}
    process = start({**flags, "num_processes": 2}, tmp_path)
    wait_for("out/clips/.*.part", tmp_path, process)
    assert run_script("prepare_dataset", **flags) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line == (
        f"error: --output_dir {out_dir}: another preparation into this folder is running; wait for it, or change "
        "--output_dir"
    )
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) in (128 + signal.SIGTERM, 0)  # it may have been done
    assert "Traceback" not in process.stderr.read()
    assert hidden_in(out_dir) == {".prepare.lock"}

    shutil.rmtree(out_dir / "clips")
    process = start({**flags, "num_processes": 2}, tmp_path)
    wait_for("out/clips/.*.part/*", tmp_path, process)  # in mid-clip
    process.kill()
    process.wait()
    for path in out_dir.glob("clips/[!.]*/*"):
        if path.suffix == ".mp4":
            assert len(list(read_frames(path))) == load_face_info(path.with_suffix(".face_info.npz")).num_frames
    before = records_of(out_dir)
    (out_dir / "clips" / ".old-name.part").mkdir()  # of an earlier version of this program

    assert run_script("prepare_dataset", **flags) == 0
    assert hidden_in(out_dir) == {".prepare.lock"}
    assert len(load_metadata(out_dir / "metadata.json")) == 2
    assert [(row["video"], row["reason"]) for row in rejections_of(out_dir)] == [("b.mp4", "too_short")]
    assert before.items() <= records_of(out_dir).items()


def test_damaged_records_are_redone_and_damaged_settings_named(tmp_path, few_dir, models, capsys):
    flags = {**LIMITS, **models, "input_dir": few_dir, "output_dir": tmp_path / "out", "device": "cpu"}
    assert run_script("prepare_dataset", **flags) == 0
    whole = records_of(tmp_path / "out")
    metadata = (tmp_path / "out" / "metadata.json").read_bytes()
    paths = sorted((tmp_path / "out").glob("clips/*/record.json"))
    paths[0].write_bytes(b"[" * 1_000_000)
    paths[1].write_bytes(paths[1].read_bytes()[:-9])
    next(paths[2].parent.glob("*.mp4")).unlink()
    (tmp_path / "out" / "rejected.jsonl").write_bytes(b"\x00[")
    assert run_script("prepare_dataset", **flags) == 0
    assert records_of(tmp_path / "out") == whole
    assert (tmp_path / "out" / "metadata.json").read_bytes() == metadata
    assert len(rejections_of(tmp_path / "out")) == 1

    (tmp_path / "out" / "settings.json").write_text("{")
    capsys.readouterr()
    assert run_script("prepare_dataset", **flags) == 2
    error = capsys.readouterr().err
    assert "settings.json is damaged" in error
    assert len(error.splitlines()) == 1


def test_a_full_disk_ends_the_run_and_keeps_what_is_done(tmp_path, few_dir, models, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "000.mp4")

    monkeypatch.setattr("vexpress.prepare.source.write_video", full)
    flags = {**LIMITS, **models, "input_dir": few_dir, "output_dir": tmp_path / "out", "device": "cpu"}
    assert run_script("prepare_dataset", **flags) == 2
    error = capsys.readouterr().err
    assert "no space left on the disk" in error
    assert f"--output_dir {tmp_path / 'out'}" in error
    assert list((tmp_path / "out" / "clips").iterdir()) == []


def test_a_model_that_is_of_no_use_ends_the_run_in_one_line(tmp_path, few_dir, models, monkeypatch, capsys):
    def detect(self, image):
        raise InputError("its models are not those of insightface", "insightface_model_path", "faces")

    monkeypatch.setattr("vexpress.media.faces.FaceAnalyzer.detect", detect)
    flags = {**LIMITS, **models, "input_dir": few_dir, "output_dir": tmp_path / "out", "device": "cpu"}
    assert run_script("prepare_dataset", **flags) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line and "prepare:" not in line]
    lines = [line for line in lines if "without a SyncNet" not in line]
    assert lines == ["error: --insightface_model_path faces: its models are not those of insightface"]
    assert list((tmp_path / "out" / "clips").iterdir()) == []


@pytest.fixture
def small_disk(tmp_path):
    """A function that makes a folder with so many KiB of space."""
    mounted = []

    def mount(num_kib: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={num_kib}k", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small tmpfs is not allowed here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_at_any_write_is_one_line_with_path_and_flag(
    tmp_path, few_dir, models, small_disk, capsys
):
    """However little space there is: too little for the folder, the video, the tensors, the records or the merge."""
    flags = {**LIMITS, **models, "input_dir": few_dir, "device": "cpu"}
    outcomes = []
    for num_kib in (4, 48, 112, 2000):
        out_dir = small_disk(num_kib) / "out"
        code = run_script("prepare_dataset", **flags, output_dir=out_dir)
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        outcomes.append(code)
        if code == 0:
            assert len(load_metadata(out_dir / "metadata.json")) == 2
            continue
        assert code == 2
        assert len(error) == 1
        assert "o space left on" in error[0]
        assert "--output_dir" in error[0]
        assert str(out_dir) in error[0]
        assert not out_dir.is_dir() or hidden_in(out_dir) <= {".prepare.lock"}
    assert outcomes[0] == 2
    assert outcomes[-1] == 0

    video = few_dir / "a.mp4"
    disk = small_disk(4)
    for name, ending, model in (
        ("extract_face_info", "npz", "insightface_model_path"),
        ("extract_face_info", "pt", "insightface_model_path"),
        ("extract_audio_embeddings", "safetensors", "audio_encoder_path"),
        ("extract_audio_embeddings", "pt", "audio_encoder_path"),
    ):
        path = disk / f"file.{ending}"
        code = run_script(name, video_path=video, save_path=path, device="cpu", **{model: models[model]})
        error = capsys.readouterr().err.splitlines()[-1]
        assert code == 2, (name, ending)
        assert error == (f"error: no space left on the disk: --save_path {path}; free space or change the path")
        assert list(disk.iterdir()) == []


# ---- outputs and inputs --------------------------------------------------------------------------------------------


@pytest.fixture
def clip_dir(tmp_path, few_dir):
    """A clip with all of its files, which hold nothing, and metadata."""
    folder = tmp_path / "clips"
    folder.mkdir()
    shutil.copy(few_dir / "a.mp4", folder)
    for name in ("face.npz", "embeds.safetensors"):
        (folder / name).write_bytes(b"")
    row = {"video": "a.mp4", "face_info": "face.npz", "audio_embeds": "embeds.safetensors"}
    (folder / "metadata.json").write_text(json.dumps([row]))
    os.symlink(folder, tmp_path / "link")
    return folder


def contents(*folders: Path) -> dict[Path, bytes]:
    files = itertools.chain.from_iterable(folder.rglob("*") for folder in folders)
    return {path: path.read_bytes() for path in files if path.is_file()}


@pytest.mark.parametrize(
    ("program", "flags", "words"),
    [
        ("extract_face_info", {"video_path": "x.npz", "save_path": "x.npz"}, "--save_path"),
        ("extract_face_info", {"video_path": "none/../x.npz", "save_path": "link/../x.npz"}, "--save_path"),
        ("extract_face_info", {"video_path": "clips/a.mp4", "save_path": "faces/new.pt"}, "of the model"),
        ("extract_audio_embeddings", {"video_path": "clips/a.mp4", "save_path": "encoder/model.safetensors"}, "of the"),
        ("extract_audio_embeddings", {"video_path": "clips/a.mp4", "save_path": "encoder/other.safetensors"}, "of the"),
        ("extract_audio_embeddings", {"input_dir": "clips", "save_meta_path": "link/a.mp4"}, "--save_meta_path"),
        ("extract_audio_embeddings", {"input_dir": "clips", "save_meta_path": "encoder/config.json"}, "of the model"),
        ("verify_dataset", {"meta_path": "clips/metadata.json", "contact_sheet": "clips/sheet.mp4"}, "end in .png"),
        ("verify_dataset", {"meta_path": "clips/sheet.png", "contact_sheet": "link/sheet.png"}, "--contact_sheet"),
        ("verify_dataset", {"meta_path": "clips/metadata.json", "num_clips": 3}, "has no effect without --contact_s"),
    ],
)
def test_outputs_are_no_inputs_and_no_files_of_a_model(
    program, flags, words, tmp_path, clip_dir, models, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(models["insightface_model_path"], "faces")
    shutil.copytree(models["audio_encoder_path"], "encoder")
    shutil.copy("clips/metadata.json", "clips/sheet.png")
    model = {"extract_face_info": "faces", "extract_audio_embeddings": "encoder"}.get(program)
    name = {"faces": "insightface_model_path", "encoder": "audio_encoder_path"}.get(model)
    more = {name: model, "device": "cpu"} if model else {}
    before = contents(tmp_path)
    assert run_script(program, **flags, **more) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"face_info": "a.npz", "video": "a.npz"}], "is also an input"),
        ([{"face_info": "embeds.npz", "audio_embeds": "../link/embeds.npz"}], "is also an input"),
        ([{"face_info": "new.npz"}, {"face_info": "../link/new.npz", "video": "b.mp4"}], "for two clips, a.mp4 and b"),
        ([{"face_info": "../other/new.npz"}], "is not in the folder of the metadata"),
        ([{"face_info": "leads_out/new.npz"}], "is not in the folder of the metadata"),
    ],
)
def test_metadata_cannot_make_a_program_overwrite_inputs(rows, words, tmp_path, clip_dir, models, capsys):
    whole = {"video": "a.mp4", "audio_embeds": "embeds.safetensors"}
    path = clip_dir / "odd.json"
    path.write_text(json.dumps([whole | row for row in rows]))
    (tmp_path / "other").mkdir()
    (clip_dir / "leads_out").symlink_to(tmp_path / "other")
    before = contents(tmp_path)
    face_models = models["insightface_model_path"]
    flags = {"meta_path": path, "insightface_model_path": face_models, "device": "cpu"}
    assert run_script("extract_face_info", **flags) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "--meta_path" in error
    assert len(error.splitlines()) == 1
    assert contents(tmp_path) == before


def test_metadata_that_replace_files_elsewhere_are_refused_and_those_that_read_there_are_not(
    tmp_path, clip_dir, models, capsys
):
    (tmp_path / "victim").mkdir()
    victim = tmp_path / "victim" / "model.safetensors"
    victim.write_bytes(b"of another project")
    row = {"video": str(clip_dir / "a.mp4"), "face_info": str(clip_dir / "face.npz"), "audio_embeds": str(victim)}
    path = tmp_path / "own" / "odd.json"
    path.parent.mkdir()
    flags = {"meta_path": path, "audio_encoder_path": models["audio_encoder_path"], "device": "cpu"}
    arguments = [*arguments_of(flags), "--overwrite"]
    path.write_text(json.dumps([row]))
    assert run_program(lambda: extract_audio_embeddings.main(arguments)) == 2
    assert f"--meta_path: {victim} would be written" in capsys.readouterr().err
    assert victim.read_bytes() == b"of another project"
    path.write_text(json.dumps([row | {"audio_embeds": "new.safetensors"}]))
    assert run_program(lambda: extract_audio_embeddings.main(arguments)) == 0
    assert (path.parent / "new.safetensors").is_file()


def test_an_odd_file_of_a_clip_is_a_failed_clip(tmp_path, clip_dir, models, capsys):
    """Files that are bombs, pipes, of other shapes or nested deeply: verify lists them and ends with 1."""
    rows = []

    def row(**files: str) -> None:
        rows.append({"video": "a.mp4", "face_info": "face.npz", "audio_embeds": "embeds.safetensors"} | files)

    row()
    np.savez_compressed(clip_dir / "bomb.npz", kps=np.zeros((2**27,), np.float64))
    row(face_info="bomb.npz")
    os.mkfifo(clip_dir / "pipe.npz")
    row(face_info="pipe.npz", audio_embeds="pipe.npz")
    os.mkfifo(clip_dir / "pipe.mp4")
    row(video="pipe.mp4")
    row(video="[x].mp4", face_info="clips")
    (clip_dir / "meta.json").write_text(json.dumps(rows))
    assert run_script("verify_dataset", meta_path=clip_dir / "meta.json", contact_sheet=tmp_path / "s.png") == 1
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    assert output.out.splitlines()[-1] == "5 clips: 0 ok, 0 warned, 5 failed"
    (clip_dir / "meta.json").write_bytes(b"[" * 1_000_000)
    assert run_script("verify_dataset", meta_path=clip_dir / "meta.json") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
