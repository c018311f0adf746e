"""Records of sources, whole and damaged, and what is merged from them."""

import json

import pytest

from vexpress.data.indexed import IndexedClips
from vexpress.data.metadata_files import read_parquet
from vexpress.errors import InputError
from vexpress.prepare import records
from vexpress.prepare.records import merge_records, read_record


def test_merging_keeps_all_records_and_those_that_came_meanwhile(tmp_path, monkeypatch):
    def add_record(name, failed=False):
        folder = tmp_path / "clips" / name
        folder.mkdir(parents=True)
        row = {"video": "0.mp4", "face_info": "0.npz", "audio_embeds": "0.safetensors", "extra": 1}
        row |= {"duration": 2.0, "fps": 30.0, "num_frames": 60}
        rejected = [{"clip": 1, "reason": "too_short", "detail": "0.1 s"}]
        record = {"source": name, "clips": [row], "rejected": rejected, "failed": failed}
        (folder / "record.json").write_text(json.dumps(record))

    add_record("one")
    add_record(".two.part")  # another process is at it
    write = records._write

    def write_while_another_process_ends(*arguments):
        written = write(*arguments)
        if not (tmp_path / "clips" / "two").exists():
            (tmp_path / "clips" / ".two.part").rename(tmp_path / "clips" / "two")
        return written

    monkeypatch.setattr(records, "_write", write_while_another_process_ends)
    num_clips, reasons = merge_records(tmp_path)
    assert num_clips == 2 and reasons == {"too_short": 2}
    videos = [row["video"] for row in json.loads((tmp_path / "metadata.json").read_text())]
    assert videos == ["clips/one/0.mp4", "clips/two/0.mp4"]
    assert len((tmp_path / "rejected.jsonl").read_text().splitlines()) == 2


ROW = {"video": "0.mp4", "face_info": "0.npz", "audio_embeds": "0.pt", "duration": 2.0, "fps": 30.0, "num_frames": 60}
RECORD = {"source": "a.mp4", "num_bytes": 9, "failed": False, "clips": [ROW], "rejected": []}


def test_a_record_is_read_as_it_was_written(tmp_path):
    records.write_json(tmp_path / "record.json", RECORD)
    assert read_record(tmp_path / "record.json") == RECORD


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[" * 1_000_000,
        b'{"a":' * 1_000_000,
        b"\xff\xfe\x00",
        b"nan",
        json.dumps(RECORD)[:-5].encode(),
        json.dumps(RECORD | {"failed": 0}).encode(),
        json.dumps(RECORD | {"source": None}).encode(),
        json.dumps(RECORD | {"clips": {}}).encode(),
        json.dumps(RECORD | {"clips": [None]}).encode(),
        json.dumps(RECORD | {"rejected": ["no"]}).encode(),
        json.dumps(RECORD | {"clips": [ROW | {"video": "../../x.mp4"}]}).encode(),
        json.dumps(RECORD | {"clips": [ROW | {"video": "a\0b"}]}).encode(),
        json.dumps(RECORD | {"clips": [ROW | {"video": "\ud800.mp4"}]}).encode(),
        json.dumps(RECORD | {"clips": [ROW | {"fps": float("nan")}]}).encode(),
        json.dumps(RECORD | {"clips": [ROW | {"num_frames": 10**400}]}).encode(),
        json.dumps(RECORD | {"clips": [ROW | {"duration": True}]}).encode(),
    ],
    ids=lambda content: content[:40].decode(errors="replace"),
)
def test_a_damaged_record_is_none_and_left_out(tmp_path, content, caplog):
    path = tmp_path / "clips" / "one" / "record.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert read_record(path) is None
    num_clips, _ = merge_records(tmp_path)
    assert num_clips == 0
    assert str(path) in caplog.text
    assert json.loads((tmp_path / "metadata.json").read_text()) == []


def test_columns_that_a_source_brought_break_no_data_set(tmp_path, caplog):
    """As records may hold them that were written before such columns were left out."""
    pytest.importorskip("pyarrow")
    rows = {"good": ROW, "odd": ROW | {"shard": "x", "video_size": 3, "\ud800": 1, "half": "\ud800", "person": "anna"}}
    for name, row in rows.items():
        (tmp_path / "clips" / name).mkdir(parents=True)
        records.write_json(tmp_path / "clips" / name / "record.json", RECORD | {"source": name, "clips": [row]})
    assert merge_records(tmp_path)[0] == 2
    clips = IndexedClips(tmp_path / "metadata.parquet", 1)
    assert not clips.is_sharded and clips.name(1) == str(tmp_path / "clips" / "odd" / "0.mp4")
    assert '"half" is' in caplog.text


def test_withdrawn_sources_leave_everything(tmp_path, caplog):
    """Also the columns that they alone have; and a duplicate is none without its original."""
    rejected, quality = [{"clip": 1, "reason": "too_short"}], {"sound_hash": "0" * 32, "picture_hash": "0" * 16}
    for name in ("a", "b"):
        (tmp_path / "clips" / name).mkdir(parents=True)
        row = ROW | {"quality": quality, f"of_{name}": 1}
        record = RECORD | {"source": name, "clips": [row], "rejected": rejected}
        records.write_json(tmp_path / "clips" / name / "record.json", record)
    assert merge_records(tmp_path, 0.1, {"a", "b"}) == (1, {"too_short": 2, "duplicate": 1})
    assert merge_records(tmp_path, 0.1, {"b"}) == (1, {"too_short": 1})
    [row] = json.loads((tmp_path / "metadata.json").read_text())
    assert row["video"] == "clips/b/0.mp4"
    assert len((tmp_path / "rejected.jsonl").read_text().splitlines()) == 1
    names = read_parquet(tmp_path / "metadata.parquet").column_names
    assert "of_b" in names and "of_a" not in names
    records.log_withdrawn(tmp_path, {"a", "b"})
    assert not caplog.messages
    records.log_withdrawn(tmp_path, {"b"})
    assert "1 sources are no longer in the input folder: their 1 clips are left out" in caplog.text


def test_an_index_of_an_earlier_run_goes_where_none_can_be_written(tmp_path, monkeypatch, caplog):
    def writing_parquet(*_):
        raise InputError("Parquet needs pyarrow")

    (tmp_path / "metadata.parquet").touch()
    monkeypatch.setattr(records, "writing_parquet", writing_parquet)
    merge_records(tmp_path)
    assert "not written" in caplog.text and not (tmp_path / "metadata.parquet").exists()


def test_a_record_that_is_a_folder_or_missing_is_none(tmp_path):
    (tmp_path / "record.json").mkdir()
    assert read_record(tmp_path / "record.json") is None
    assert read_record(tmp_path / "none.json") is None
