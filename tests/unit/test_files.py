"""Files that are never half-written, and paths that are checked before the work begins."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vexpress import files
from vexpress.errors import InputError
from vexpress.files import check_output_path, replacing


def test_a_failure_leaves_the_former_file(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("former")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("new")
        raise RuntimeError
    assert path.read_text() == "former"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_moved_into_place_is_on_the_disk_first(tmp_path, monkeypatch):
    events = []
    real_fsync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (events.append("fsync"), real_fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append("replace"), real_replace(*paths)))
    with replacing(tmp_path / "x.txt") as temporary:
        temporary.write_text("new")
    assert events == ["fsync", "replace", "fsync"]  # the file, its name, the folder


def test_a_full_disk_names_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(OSError, match="x.txt") as caught, replacing(tmp_path / "x.txt"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(tmp_path / "x.txt")


def test_left_overs_of_killed_processes_go_and_those_of_running_ones_stay(tmp_path):
    code = (
        "import os, signal, sys; from vexpress.files import replacing\n"
        "with replacing(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "x.mp4"], cwd=Path(__file__).parents[2])
    [left_over] = tmp_path.iterdir()
    running = tmp_path / f".{files.HOST}-{os.getppid()}-{'0' * 32}.part.mp4"
    others = tmp_path / f".{'0' * 8}-{left_over.name.split('-')[1]}-{'0' * 32}.part.mp4"  # of another machine
    users = tmp_path / ".notes.part"
    for path in (running, others, users):
        path.write_text("")
    with replacing(tmp_path / "y.txt") as temporary:
        temporary.write_text("new")
    assert {path.name for path in tmp_path.iterdir()} == {running.name, others.name, users.name, "y.txt"}


def test_outputs_are_no_inputs_also_by_other_names_and_before_they_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "in.wav").write_text("")
    os.link(tmp_path / "in.wav", tmp_path / "hard.wav")
    os.symlink(tmp_path / "in.wav", tmp_path / "soft.wav")
    for output, other in (
        ("in.wav", tmp_path / "in.wav"),
        ("folder/../in.wav", "in.wav"),
        ("hard.wav", "in.wav"),
        ("soft.wav", "in.wav"),
        ("new.mp4", tmp_path / "folder" / ".." / "new.mp4"),
    ):
        with pytest.raises(InputError, match="is also one of the inputs or other outputs"):
            check_output_path(output, "output_path", [None, other])
    assert check_output_path("new.mp4", "output_path", ["in.wav"]) == Path("new.mp4")


def test_files_of_models_are_not_written(tmp_path):
    (tmp_path / "config.yaml").write_text("x")
    for name in ("config.yaml", "model.safetensors", "inference_defaults.json"):
        with pytest.raises(InputError, match="would be a file of the model"):
            check_output_path(tmp_path / name, "output_path", model_dirs=[None, tmp_path])
    check_output_path(tmp_path / "video.mp4", "output_path", model_dirs=[tmp_path])


@pytest.mark.parametrize("name", ["a\0b.mp4", "x" * 300, "missing/x.mp4", "."])
def test_paths_that_cannot_be(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        check_output_path(name, "output_path")
    assert caught.value.field == "output_path"
