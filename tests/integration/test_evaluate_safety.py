"""An evaluation that is killed, runs out of disk space, or gets files that somebody made to harm it."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from scripts.evaluate import METERS
from tests import tiny
from tests.clips import write_dataset
from tests.unit.evaluation import talkers
from vexpress.cli import evaluate as program
from vexpress.cli.program import run_program
from vexpress.media.video import read_frames

SCRIPT_PATH = Path(__file__).parents[2] / "scripts" / "evaluate.py"
DEADLINE_SECONDS = 120


def run(flags: dict[str, object]) -> int:
    """Runs the program as scripts/evaluate.py does."""
    return run_program(lambda: program.main(arguments_of(flags), METERS))


def arguments_of(flags: dict[str, object]) -> list[str]:
    return [str(part) for name, value in flags.items() for part in (f"--{name}", value)]


def only_error(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.slow
def test_a_killed_generation_loses_nothing_and_leaves_nothing(tmp_path):
    flags = {
        "meta_path": write_dataset(tmp_path / "data", 3, num_frames=12, size=64),
        "model_dir": tiny.write_model_dir(tmp_path / "model"),
        "output_dir": tmp_path / "report",
        "image_width": 64,
        "image_height": 64,
        "num_inference_steps": 4,
        "context_frames": 4,
        "context_overlap": 1,
        "device": "cpu",
    }
    process = subprocess.Popen(
        [sys.executable, SCRIPT_PATH, *arguments_of(flags)], stderr=subprocess.PIPE, cwd=tmp_path, text=True
    )
    generated, deadline = tmp_path / "report" / "generated", time.monotonic() + DEADLINE_SECONDS
    # in the middle of the second video
    while not (any(generated.glob("clip_*.mp4")) and any(generated.glob(".*.part.mp4"))):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.wait()
    made = {path: path.read_bytes() for path in generated.glob("clip_*.mp4")}
    assert 1 <= len(made) < 3
    for path in made:
        assert len(list(read_frames(path))) == 12
    json.loads((generated / "generation.json").read_text())

    assert run(flags) == 0
    assert {path: path.read_bytes() for path in made} == made
    names = {path.name for path in generated.iterdir()}
    assert names == {"clip_0.mp4", "clip_1.mp4", "clip_2.mp4", "generation.json"}
    assert not list((tmp_path / "report").rglob(".*"))
    assert len(json.loads((tmp_path / "report" / "report.json").read_text())["clips"]) == 3


@pytest.fixture
def drawn_flags(tmp_path):
    """Flags of a comparison of two drawn clips with themselves, without any network."""
    meta_path = talkers.write_drawn(tmp_path / "data", 2, num_frames=16)
    return {
        "meta_path": meta_path,
        "generated_dir": tmp_path / "data",
        "output_dir": tmp_path / "report",
        "num_distance_resamples": 2,
        "device": "cpu",
    }


def test_a_full_disk_is_one_line_with_path_and_flag(tmp_path, drawn_flags, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    try:
        assert run({**drawn_flags, "output_dir": disk / "report"}) == 2
        error = only_error(capsys)
        assert error.startswith(f"error: no space left on the disk: --output_dir {disk / 'report'}/")
        assert list((disk / "report").iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("kind", ["bomb", "text", "empty", "words", "shape", "nan", "folder", "pickle"])
def test_odd_labels_are_a_problem_of_their_clip(tmp_path, drawn_flags, kind):
    path = tmp_path / "data" / "c0_labels.npz"
    path.unlink()
    if kind == "bomb":
        np.savez_compressed(path, mouth=np.zeros((2**24, 4), np.float64))
    elif kind == "words":
        np.savez(path, mouth=np.array([["a", "b"]] * 16))
    elif kind == "shape":
        np.savez(path, mouth=np.zeros((3, 7, 2)))
    elif kind == "nan":
        np.savez(path, mouth=np.full((16, 2), np.nan))
    elif kind == "pickle":
        np.savez(path, mouth=np.array([{}] * 16, object))
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes({"text": b"hello", "empty": b""}[kind])
    assert run(drawn_flags) == 0
    problems = json.loads((tmp_path / "report" / "report.json").read_text())["problems"]
    reasons = [problem["reason"] for problem in problems if problem["clip"] == "c0"]
    assert any("labels" in reason or "of 16 frames" in reason for reason in reasons), reasons
    assert all("\n" not in reason for reason in reasons)


@pytest.mark.parametrize(
    "content", [b"[" * 1_000_000, b"", b"{}", b"[[]]", b'[{"video": "\\ud800.mp4"}]', b"\xff\xfe", b'[{"video": 7}]']
)
def test_odd_metadata_is_one_line(drawn_flags, content, capsys):
    drawn_flags["meta_path"].write_bytes(content)
    assert run(drawn_flags) == 2
    assert str(drawn_flags["meta_path"]) in only_error(capsys)


@pytest.mark.parametrize(
    "changes",
    [
        {"language": "a\x00b\u202e|`\n# x"},
        {"language": "\ud800"},
        {"language": 10**300},
        {"language": float("nan")},
        {"labels": "a\x00b"},
        {"labels": 7},
        {"audio": "gone.wav"},
    ],
    ids=lambda changes: repr(changes)[:30],
)
def test_odd_values_of_a_row_do_not_end_the_report(tmp_path, drawn_flags, changes):
    rows = json.loads(drawn_flags["meta_path"].read_text())
    rows[0] |= changes
    drawn_flags["meta_path"].write_text(json.dumps(rows))
    assert run({**drawn_flags, "group_by": "language"}) == 0
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8", errors="surrogateescape")
    assert "\n# x" not in text
    json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("content", ["[" * 1_000_000, "{}", "null", ""])
def test_a_damaged_record_of_the_generation_is_another_generation(tmp_path, content, capsys):
    flags = {
        "meta_path": write_dataset(tmp_path / "data", 1, num_frames=4, size=64),
        "model_dir": tiny.write_model_dir(tmp_path / "model"),
        "output_dir": tmp_path / "report",
        "device": "cpu",
    }
    (tmp_path / "report" / "generated").mkdir(parents=True)
    shutil.copy(tmp_path / "data" / "clip_0.mp4", tmp_path / "report" / "generated")
    (tmp_path / "report" / "generated" / "generation.json").write_text(content)
    assert run(flags) == 2
    assert "generation.json" in only_error(capsys)
