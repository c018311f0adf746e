"""The page about a data set: its numbers, and that nothing in a name can leave it."""

import json
import re
import sys

import pytest

from tests.clips import write_clip
from vexpress.cli import main as vexpress_main
from vexpress.data.formats import save_metadata
from vexpress.errors import InputError
from vexpress.prepare.data_report import build_report

HOSTILE = '<script>alert("x")</script>'


def write_set(folder, num_clips=3):
    records = [write_clip(folder / "clips", f"clip_{i}", num_frames=25, seed=i) for i in range(num_clips)]
    save_metadata(folder / "metadata.json", records)
    rows = json.loads((folder / "metadata.json").read_text())
    for i, row in enumerate(rows):
        row |= {"language": ("de", "de", "fi")[i], "person": f"{HOSTILE}{i}", "quality": {"blur": 0.2 + i / 10}}
    (folder / "metadata.json").write_text(json.dumps(rows))
    write_clip(folder / "raw", "bad", num_frames=25)
    about = {"clip": 0, "start_seconds": 0.0, "end_seconds": 1.0, "detail": HOSTILE, "quality": {"blur": 0.9}}
    rejected = [{"video": "bad.mp4", "reason": "blurred"} | about] * 2 + [
        {"video": "gone.mp4", "reason": HOSTILE, "clip": None, "detail": "none", "quality": {"blur": "high"}}
    ]
    (folder / "rejected.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rejected))
    (folder / "settings.json").write_text(json.dumps({"input_dir": str(folder / "raw"), "max_blur": 0.7}))
    return folder / "metadata.json"


def test_the_page_counts_and_shows(tmp_path):
    meta_path = write_set(tmp_path)
    page = build_report(meta_path)
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert "3 clips" in text and "3 rejected" in text
    assert re.search(r"blurred 2 the face is blurred", text)
    assert re.search(r"de 0.03 2 fi 0.02 1", text)
    assert "blur of the face; median of kept clips 0.3" in text and "max_blur 0.7" in text
    assert page.count("data:image/jpeg;base64,") == 5  # three clips and twice the source of what was rejected
    assert page == build_report(meta_path)


def test_names_are_text_and_the_page_is_alone(tmp_path):
    page = build_report(write_set(tmp_path))
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not re.search(r'(src|href)="(?!data:)', page) and "default-src 'none'" in page


def test_a_column_is_counted_or_named_if_it_is_not_there(tmp_path):
    meta_path = write_set(tmp_path)
    assert "Minutes by fps" in build_report(meta_path, ["fps"])
    with pytest.raises(InputError, match="no clip has this column"):
        build_report(meta_path, ["mood"])


def test_damage_is_named(tmp_path):
    meta_path = write_set(tmp_path, num_clips=1)
    (tmp_path / "rejected.jsonl").write_text('{"reason": 3}\n')
    with pytest.raises(InputError, match="rejected.jsonl"):
        build_report(meta_path)
    (tmp_path / "rejected.jsonl").unlink()
    (tmp_path / "settings.json").write_text("{")
    assert "1</b>clips" in build_report(meta_path)
    meta_path.write_text("[]")
    with pytest.raises(InputError, match="holds no clips"):
        build_report(meta_path)


def test_the_command_writes_the_page(tmp_path, monkeypatch, capsys):
    meta_path, page = write_set(tmp_path, num_clips=1), tmp_path / "page.html"

    def run(*flags) -> int:
        monkeypatch.setattr(
            sys, "argv", ["vexpress", "data", "report", "--meta_path", str(meta_path), *map(str, flags)]
        )
        return vexpress_main.main()

    assert run("--save_path", page) == 0
    assert page.read_text(encoding="utf-8") == build_report(meta_path)
    for flags, message in (
        (["--save_path", tmp_path / "page.txt"], "must end in .html"),
        (["--save_path", page, "--group_by", "mood"], "--group_by mood: no clip has this column"),
        (["--save_path", page, "--num_samples", -1], "--num_samples -1"),
    ):
        assert run(*flags) == 2
        assert message in capsys.readouterr().err
