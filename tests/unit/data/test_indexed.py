"""An index in Parquet, tar shards, and stores: the same samples as from JSON and files of this machine."""

import itertools
import json
import os
import tarfile

import numpy as np
import pytest
from torch.utils.data import DataLoader

from tests.clips import write_clip, write_dataset
from tests.unit.data.test_dataset import assert_same, make_config
from vexpress.audio_encoders import EncoderRecord
from vexpress.cli import index as index_program
from vexpress.cli.program import EXIT_BAD_INPUT, run_program
from vexpress.data.dataset import TalkingFaceDataset
from vexpress.data.formats import save_metadata
from vexpress.data.indexed import IndexedClips
from vexpress.data.loading import SampleStream
from vexpress.data.metadata_files import FACT_KEYS, read_parquet, writing_parquet
from vexpress.errors import InputError

pytest.importorskip("pyarrow")
pytest.importorskip("upath", reason="needs universal_pathlib")
NUM_CLIPS = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Clips with metadata.json, metadata.parquet and shards of one or two clips each."""
    folder = tmp_path_factory.mktemp("clips")
    meta_path = write_dataset(folder, NUM_CLIPS)
    index_program.main(["--meta_path", str(meta_path), "--save_path", str(folder / "metadata.parquet")])
    index_program.main(["--meta_path", str(meta_path), "--shards_dir", str(folder / "shards"), "--shard_mib", "1"])
    return folder


def samples(dataset, numbers):
    return [dataset[number] | {"name": None} for number in numbers]


@pytest.fixture(scope="module")
def expected(folder):
    """The samples of two epochs, from JSON."""
    dataset = TalkingFaceDataset(make_config(folder / "metadata.json", flip_rate=0.5), seed=3)
    return samples(dataset, range(2 * NUM_CLIPS))


def test_shards_of_a_run_that_was_cut_off_are_not_mixed_with_others(folder, tmp_path):
    (tmp_path / "shard-000007.tar").write_bytes(b"")
    with pytest.raises(InputError, match="holds shards already"):
        index_program.main(["--meta_path", str(folder / "metadata.json"), "--shards_dir", str(tmp_path)])


@pytest.mark.parametrize("name", ["metadata.parquet", "shards/index.parquet"])
def test_an_index_gives_the_samples_of_json(name, folder, expected):
    dataset = TalkingFaceDataset(make_config(folder / name, flip_rate=0.5), seed=3)
    assert len(dataset) == NUM_CLIPS
    for sample, other in zip(samples(dataset, range(2 * NUM_CLIPS)), expected):
        assert_same(sample, other)
    names = {dataset[number]["name"] for number in range(NUM_CLIPS)}
    assert len(names) == NUM_CLIPS and all(name.startswith(str(folder)) for name in names)


def test_shards_in_a_store_are_read_clip_by_clip(folder, expected):
    from upath import UPath

    store = UPath("memory://bucket/shards")
    for path in (folder / "shards").iterdir():
        (store / path.name).write_bytes(path.read_bytes())
    config = make_config(flip_rate=0.5)
    config.meta_paths = [str(store / "index.parquet")]
    dataset = TalkingFaceDataset(config, seed=3)
    for sample, other in zip(samples(dataset, range(4)), expected):
        assert_same(sample, other)
    assert dataset[0]["name"].startswith("memory://bucket/shards/shard-0")


def test_processes_and_workers_read_disjoint_parts_and_a_resumed_run_the_same(folder):
    dataset = TalkingFaceDataset(make_config(folder / "shards" / "index.parquet"), seed=3)

    def read(start, rank, num_processes, count):
        loader = DataLoader(dataset, batch_size=1, sampler=SampleStream(start, rank, num_processes), num_workers=2)
        return [(int(batch["number"]), batch["name"][0]) for batch in itertools.islice(loader, count)]

    one, two = read(0, 0, 2, 5), read(0, 1, 2, 5)
    assert sorted(number for number, _ in one + two) == list(range(2 * NUM_CLIPS))
    epoch = [name for number, name in one + two if number < NUM_CLIPS]
    assert len(set(epoch)) == NUM_CLIPS  # each clip once, by one of them
    assert read(6, 0, 2, 2) == one[3:]  # 6 samples were consumed by both together


def test_webdataset_and_tar_read_the_shards(folder):
    table = read_parquet(folder / "shards" / "index.parquet").to_pylist()
    for row in table:
        with tarfile.open(folder / "shards" / row["shard"]) as shard:
            for key in ("video", "face_info", "audio_embeds"):
                member = shard.getmember(row[key])
                assert (member.offset_data, member.size) == (row[f"{key}_offset"], row[f"{key}_size"])
    webdataset = pytest.importorskip("webdataset")
    urls = sorted(str(path) for path in (folder / "shards").glob("*.tar"))
    read = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(read) == NUM_CLIPS
    assert {"mp4", "face_info.npz", "audio_embeds.safetensors", "json"} <= read[0].keys()
    assert json.loads(read[0]["json"])["num_frames"] == 60


def test_too_short_clips_are_left_out_and_changed_files_are_named(tmp_path):
    records = [write_clip(tmp_path, "long"), write_clip(tmp_path, "short", num_frames=20)]
    save_metadata(tmp_path / "metadata.json", records)
    index_program.main(["--meta_path", str(tmp_path / "metadata.json"), "--save_path", str(tmp_path / "m.parquet")])
    dataset = TalkingFaceDataset(make_config(tmp_path / "m.parquet"), seed=0)
    assert len(dataset) == 1
    records[0].face_info.unlink()
    with pytest.raises(InputError, match="face_info .* does not exist"):
        dataset[0]


def test_a_clip_that_cannot_serve_is_not_in_the_index(tmp_path, capsys):
    records = [write_clip(tmp_path, "whole"), write_clip(tmp_path, "damaged")]
    records[1].face_info.write_bytes(b"no numbers")
    save_metadata(tmp_path / "metadata.json", records)
    arguments = ["--meta_path", str(tmp_path / "metadata.json"), "--save_path", str(tmp_path / "metadata.parquet")]
    with pytest.raises(SystemExit) as exit:
        index_program.main(arguments)
    assert exit.value.code == 1
    assert "1 clips; left out: 1" in capsys.readouterr().out
    assert len(IndexedClips(tmp_path / "metadata.parquet", 1)) == 1


ROW = {"video": "a.mp4", "face_info": "a.npz", "audio_embeds": "a.safetensors", "num_frames": 60, "audio_dim": 4}
MEMBERS = {f"{key}_{what}": 0 for key in ("video", "face_info", "audio_embeds") for what in ("offset", "size")}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"video": "../../etc/passwd"}, "leads out of"),
        ({"video": "/etc/passwd"}, "leads out of"),
        ({"video": "file:///etc/passwd"}, "leads out of"),
        ({"video": "a.mp4"}, "cannot be read"),
        ({"shard": "../x.tar"} | MEMBERS, "needed is the name of a file"),
        ({"shard": "x.tar", "video": "../a.mp4"} | MEMBERS, "needed is the name of a file"),
        ({"shard": "x.tar"} | MEMBERS | {"video_size": 2**40}, "has no place and size"),
        ({"shard": "x.tar"} | MEMBERS | {"video_offset": -1}, "has no place and size"),
        ({"shard": "x.tar"} | MEMBERS | {"video_size": 9}, "cannot be read"),
    ],
)
def test_names_in_an_index_lead_nowhere_else(changes, words):
    from upath import UPath

    path = UPath("memory://odd/index.parquet")
    row = ROW | changes
    columns = {key: "text" if isinstance(value, str) else "integer" for key, value in row.items()}
    with writing_parquet(path, columns) as add:
        add(row)
    with pytest.raises(InputError, match=words), IndexedClips(path, 1).open(0):
        pass


@pytest.mark.parametrize("content", [b"", b"PAR1", b"x" * 1000])
def test_a_file_that_is_no_parquet_is_one_line(tmp_path, content, capsys):
    (tmp_path / "m.parquet").write_bytes(content)
    with pytest.raises(InputError, match="is it Parquet"):
        IndexedClips(tmp_path / "m.parquet", 1)
    with writing_parquet(tmp_path / "m.parquet", {"other": "text"}) as add:
        add({"video": "a.mp4", "num_frames": 3})
    index = IndexedClips(tmp_path / "m.parquet", 1)
    with pytest.raises(InputError, match='has no "face_info"'), index.open(0):
        pass
    assert run_program(lambda: index_program.main(["--meta_path", "x.json"])) == EXIT_BAD_INPUT
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_many_rows_are_read_by_their_numbers(tmp_path):
    with writing_parquet(tmp_path / "m.parquet", {}) as add:
        for number in range(50_000):
            add(ROW | {"video": f"{number}.mp4"})
    index = IndexedClips(tmp_path / "m.parquet", 1)
    assert len(index) == 50_000 and index.audio_kinds == {(4, EncoderRecord()): 1}
    assert index.name(49_999) == str(tmp_path / "49999.mp4")
    assert np.array_equal(index._numbers("num_frames"), np.full(50_000, 60))


ODD_COLUMNS = {"shard": "x", "video_offset": 3, "\ud800": 1, "half": "\ud800", "person": "anna"}


def test_odd_columns_of_metadata_break_no_index(tmp_path, folder, capsys):
    """As a file beside a video may have brought them into metadata that are there already."""
    rows = json.loads((folder / "metadata.json").read_text())
    (folder / "odd.json").write_text(json.dumps([row | ODD_COLUMNS for row in rows]))
    arguments = ["--meta_path", str(folder / "odd.json")]
    index_program.main([*arguments, "--save_path", str(folder / "odd.parquet")])
    index_program.main([*arguments, "--shards_dir", str(tmp_path / "shards")])
    assert '"half" is' in capsys.readouterr().err
    for path in (folder / "odd.parquet", tmp_path / "shards" / "index.parquet"):
        clips = IndexedClips(path, 1)
        assert (
            clips.is_sharded == (path.name == "index.parquet") and list(clips.facts("person")) == ["anna"] * NUM_CLIPS
        )
        with clips.open(0) as record:
            assert record.video.is_file()


@pytest.fixture
def known_row(tmp_path):
    """A clip whose row holds all that an index has to know, so that its files need not be opened for that."""
    save_metadata(tmp_path / "metadata.json", [write_clip(tmp_path, "a")])
    [row] = json.loads((tmp_path / "metadata.json").read_text())
    return row | {"duration": 2.4, "fps": 25.0, "num_frames": 60} | dict.fromkeys(FACT_KEYS, 64)


@pytest.mark.parametrize("key", ["video", "face_info", "audio_embeds"])
@pytest.mark.parametrize("name", ["id_rsa", "key.npz", "key.mp4", "key.safetensors", "pipe.mp4", f"a.{'x' * 120}"])
def test_a_file_that_is_none_of_a_clip_gets_into_no_shard(tmp_path, known_row, key, name, capsys):
    secret = tmp_path / "elsewhere" / name
    secret.parent.mkdir()
    if name.startswith("pipe"):
        os.mkfifo(secret)
    else:
        secret.write_bytes(b"PRIVATE KEY" * 100)
    (tmp_path / "link.npz").symlink_to(secret)
    for number, path in enumerate((str(secret), "link.npz")):
        (tmp_path / "metadata.json").write_text(json.dumps([known_row | {key: path}, known_row]))
        places = ["--meta_path", str(tmp_path / "metadata.json"), "--shards_dir", str(tmp_path / f"shards_{number}")]
        with pytest.raises(SystemExit) as exit:
            index_program.main(places)
        assert exit.value.code == 1
        output = capsys.readouterr()
        assert "1 clips; left out: 1" in output.out and len(output.err.splitlines()) == 1
    for shard in tmp_path.glob("shards_*/*.tar"):
        assert b"PRIVATE KEY" not in shard.read_bytes()
