"""A folder for each source, and what a preparation goes on from."""

import json
import os
import pickle

import pytest

from vexpress.errors import InputError
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


def test_what_is_damaged_is_done_again(tmp_path):
    """A record that is damaged, a clip that is gone and a source that changed are each prepared once more."""
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
    write_json(folder / "record.json", record)
    assert preparation.is_done(source)

    (folder / "0.npz").unlink()
    assert not preparation.is_done(source)
    (folder / "0.npz").touch()
    source.write_bytes(b"fives")
    assert not preparation.is_done(source)
    source.write_bytes(b"four")
    assert preparation.is_done(source)
    (folder / "record.json").write_text('{"source": "a.mp4", "fai')
    assert not preparation.is_done(source)


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
