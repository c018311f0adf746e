"""Columns for the metadata from the file beside a video."""

import json

import pytest

from vexpress.prepare.facts import read_facts


def test_texts_and_numbers_are_taken(tmp_path):
    facts = {"language": "de", "age": 31, "score": 0.5, "tags": ["a"], "video": "other.mp4", "quality": 1, "width": 9}
    (tmp_path / "a.json").write_text(json.dumps(facts | {"bad": float("nan")}))
    assert read_facts(tmp_path / "a.mp4") == {"language": "de", "age": 31, "score": 0.5}
    assert read_facts(tmp_path / "b.mp4") == {}


def test_columns_by_which_readers_know_data_are_not_taken(tmp_path):
    own = ("shard", "video_offset", "audio_embeds_size", "audio_encoder", "quality.blur", "source_start_seconds")
    halves = {"\ud800": 1, "half": "\ud800"}
    (tmp_path / "a.json").write_text(json.dumps({**dict.fromkeys(own, "x"), **halves, "": "", "person": "\u00e4"}))
    assert read_facts(tmp_path / "a.mp4") == {"": "", "person": "\u00e4"}


@pytest.mark.parametrize("content", ["[1]", "{", "[" * 100_000, ""])
def test_a_damaged_file_is_named_and_nothing_is_taken(tmp_path, content, caplog):
    (tmp_path / "a.json").write_text(content)
    assert read_facts(tmp_path / "a.mkv") == {}
    assert "a.json" in caplog.text
