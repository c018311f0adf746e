"""A folder for each source, and what a preparation goes on from."""

import hashlib
import json
import os
import pickle

import pytest

from vexpress.errors import InputError
from vexpress.prepare import folder as folder_module
from vexpress.prepare.folder import Preparation, check_settings
from vexpress.prepare.records import write_json
from vexpress.prepare.settings import PrepareSettings


def test_each_source_has_its_own_valid_folder(tmp_path):
    preparation = Preparation(tmp_path, tmp_path / "out", PrepareSettings(), tmp_path, tmp_path)
    names = ["a.mp4", "a.mov", "sub/a.mp4", "ü" * 100 + ".mp4", "a b.mp4", "a_b.mp4", os.fsdecode(b"\xff.mp4")]
    folders = [preparation.folder_of(tmp_path / name).name for name in names]
    assert len(set(folders)) == len(names)
    assert all(name.isascii() and len(name) < 60 and "/" not in name and " " not in name for name in folders)
    assert pickle.loads(pickle.dumps(preparation)) == preparation  # as workers get it  # noqa: S301


def prepared(tmp_path, **more):
    """A source that holds "four" and what was made of it, with `more` in its record."""
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / "a.mp4"
    source.write_bytes(b"four")
    preparation = Preparation(tmp_path / "in", tmp_path / "out", PrepareSettings(), tmp_path, tmp_path)
    folder = preparation.folder_of(source)
    folder.mkdir(parents=True)
    names = {"video": "0.mp4", "face_info": "0.npz", "audio_embeds": "0.pt"}
    for name in names.values():
        (folder / name).touch()
    row = names | {"duration": 1.0, "fps": 4.0, "num_frames": 4}
    record = {"source": "a.mp4", "num_bytes": 4, "failed": False, "clips": [row], "rejected": []}
    write_json(folder / "record.json", record | more)
    return preparation, source, folder


def test_what_is_damaged_is_done_again(tmp_path):
    """A record that is damaged, a clip that is gone and a source that changed are each prepared once more."""
    preparation, source, folder = prepared(tmp_path)
    assert preparation.keep(source)

    (folder / "0.npz").unlink()
    assert not preparation.keep(source)
    (folder / "0.npz").touch()
    source.write_bytes(b"fives")
    assert not preparation.keep(source)
    source.write_bytes(b"four")
    assert preparation.keep(source)
    (folder / "record.json").write_text('{"source": "a.mp4", "fai')
    assert not preparation.keep(source)


def test_facts_that_changed_are_taken_and_those_that_are_gone_leave(tmp_path):
    preparation, source, folder = prepared(tmp_path)
    path = folder / "record.json"
    bare = json.loads(path.read_text())
    for facts in ({"language": "de"}, {"person": "anna", "language": "fr"}, {"language": "fr", "person": "anna"}, {}):
        source.with_suffix(".json").write_text(json.dumps(facts))
        assert preparation.keep(source)
        assert path.read_text() == json.dumps(bare | {"clips": [facts | bare["clips"][0]]}, indent=1)
        written = path.stat().st_ino
        assert preparation.keep(source) and path.stat().st_ino == written
    source.with_suffix(".json").write_text('{"language": "de"}')
    assert preparation.keep(source)
    source.with_suffix(".json").unlink()
    assert preparation.keep(source) and json.loads(path.read_text()) == bare


def test_a_source_that_is_newer_than_its_record_is_kept_if_it_is_a_copy(tmp_path):
    preparation, source, folder = prepared(tmp_path, sha256=hashlib.sha256(b"four").hexdigest())
    os.utime(folder / "record.json", (1, 1))  # so that the source was written after it
    assert not preparation.keep(source)
    preparation.prepare(source, None)  # needs no models
    assert preparation.keep(source)

    for write in (source.write_bytes, lambda content: replace_by_link(source, content)):
        write(b"FOUR")
        os.utime(source, (1, 1))  # as copies have the time of what was copied
        os.utime(folder / "record.json", (2, 2))
        assert not preparation.keep(source)
        assert not preparation.keep(source, hashlib.sha256(b"FOUR").hexdigest())


def replace_by_link(path, content):
    path.with_suffix(".other").write_bytes(content)
    path.unlink()
    path.symlink_to(path.with_suffix(".other"))


def test_a_source_that_is_written_meanwhile_is_tried_again(tmp_path, monkeypatch):
    """As one whose download is not at its end."""
    preparation, source, folder = prepared(tmp_path, failed=True)

    def prepare_source(*_):
        source.write_bytes(b"more")
        os.utime(source, (1, 1))
        return {"clips": [], "rejected": []}

    monkeypatch.setattr(folder_module, "prepare_source", prepare_source)
    preparation.prepare(source, None)
    record = json.loads((folder / "record.json").read_text())
    assert record["failed"] and "changed while" in record["rejected"][0]["detail"]
    preparation.prepare(source, None)
    assert preparation.keep(source)


@pytest.mark.parametrize("content", ["", "[]", "[" * 1_000_000, "{'size': 3}"])
def test_damaged_settings_are_named_where_there_are_clips_and_written_anew_where_not(tmp_path, content):
    path = tmp_path / "settings.json"
    path.write_text(content)
    check_settings(tmp_path, {"size": 64})
    assert json.loads(path.read_text()) == {"size": 64}

    (tmp_path / "clips" / "one").mkdir(parents=True)
    (tmp_path / "clips" / "one" / "record.json").write_text("{}")
    check_settings(tmp_path, {"size": 64})
    path.write_text(content)
    with pytest.raises(InputError, match=r"settings\.json is damaged, so that nobody knows"):
        check_settings(tmp_path, {"size": 64})
