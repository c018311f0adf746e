"""In which order clips are sampled, and which states may be sampled together."""

import json
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from tests.clips import write_clip
from tests.unit.data.test_dataset import make_config
from vexpress.audio_encoders import EncoderRecord
from vexpress.data.dataset import TalkingFaceDataset
from vexpress.data.formats import load_audio_states, load_metadata, save_audio_embeds, save_metadata
from vexpress.data.index import write_index
from vexpress.data.loading import SampleStream
from vexpress.data.order import BalancedOrder, ShuffledOrder
from vexpress.errors import InputError

LANGUAGES = ["en"] * 20 + ["de"] * 3 + ["fi"]
HUBERT = EncoderRecord("hubert", "0123456789abcdef", 9, 50.0)


def test_each_value_is_equally_frequent_and_so_is_each_of_its_clips():
    order = BalancedOrder(0, LANGUAGES)
    chosen = [order[number] for number in range(3 * 60)]
    assert Counter(LANGUAGES[clip] for clip in chosen) == {"en": 60, "de": 60, "fi": 60}
    for start in range(0, len(chosen), 3):  # in each round
        assert {LANGUAGES[clip] for clip in chosen[start : start + 3]} == {"en", "de", "fi"}
    counts = Counter(chosen)
    assert {counts[clip] for clip in range(20)} == {3} and {counts[clip] for clip in (20, 21, 22)} == {20}
    first, second = ([clip for clip in chosen[start : start + 60] if clip < 20] for start in (0, 60))
    assert sorted(first) == sorted(second) == list(range(20)) and first != second


def test_the_order_is_a_function_of_seed_and_number():
    expected = [BalancedOrder(1, LANGUAGES)[number] for number in range(100)]  # each of a new one: nothing is held
    order = BalancedOrder(1, LANGUAGES)
    assert [order[number] for number in range(100)] == expected
    assert [order[number] for number in reversed(range(100))] == expected[::-1]
    assert [BalancedOrder(2, LANGUAGES)[number] for number in range(100)] != expected


def test_two_processes_and_a_resumed_run_see_what_one_sees():
    order = BalancedOrder(0, LANGUAGES)
    whole = [order[number] for number in islice(SampleStream(), 60)]
    ranks = [[BalancedOrder(0, LANGUAGES)[n] for n in islice(SampleStream(20, rank, 2), 20)] for rank in (0, 1)]
    assert [clip for pair in zip(*ranks) for clip in pair] == whole[20:]


def test_without_a_column_each_clip_comes_once_in_an_epoch():
    order = ShuffledOrder(0, 5)
    chosen = [order[number] for number in range(10)]
    assert sorted(chosen[:5]) == sorted(chosen[5:]) == list(range(5)) and chosen[:5] != chosen[5:]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return [write_clip(folder, f"clip_{i}", seed=i) for i in range(3)]


def test_a_column_of_the_metadata_balances_samples(records, tmp_path):
    path = tmp_path / "metadata.json"
    save_metadata(path, [replace(r, facts={"language": name}) for r, name in zip(records, ("en", "en", "fi"))])
    assert [row["language"] for row in json.loads(path.read_text())] == ["en", "en", "fi"]
    assert [r.facts for r in load_metadata(path, ["language"])] == [{"language": "en"}] * 2 + [{"language": "fi"}]
    dataset = TalkingFaceDataset(make_config(path, balance_by="language"), seed=0)
    names = [dataset[number]["name"] for number in range(8)]
    assert Counter(Path(name).name for name in names) == {"clip_0.mp4": 2, "clip_1.mp4": 2, "clip_2.mp4": 4}
    pytest.importorskip("pyarrow")
    write_index(path, tmp_path / "metadata.parquet", None)
    indexed = TalkingFaceDataset(make_config(tmp_path / "metadata.parquet", balance_by="language"), seed=0)
    assert [indexed[number]["name"] for number in range(8)] == names
    with pytest.raises(InputError, match=r'metadata\.parquet row 1: has no "accent"'):
        TalkingFaceDataset(make_config(tmp_path / "metadata.parquet", balance_by="accent"), seed=0)


@pytest.mark.parametrize("value", [None, ["en"], {}])
def test_a_row_without_the_column_is_named(records, tmp_path, value):
    path = tmp_path / "metadata.json"
    save_metadata(path, [replace(record, facts={"language": "en"}) for record in records])
    rows = json.loads(path.read_text())
    rows[1]["language"] = value
    path.write_text(json.dumps(rows))
    with pytest.raises(InputError, match=r'metadata\.json row 2 of 3: has no "language", a text or a number'):
        TalkingFaceDataset(make_config(path, balance_by="language"), seed=0)


# ---- who made the states ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt"])
def test_files_of_states_say_who_made_them(records, tmp_path, suffix):
    states, unknown = load_audio_states(records[0].audio_embeds)
    assert unknown == EncoderRecord()
    path = tmp_path / f"states{suffix}"
    for encoder in (HUBERT, replace(HUBERT, layers=(0.5, 0.25)), None):
        save_audio_embeds(path, states, encoder)
        found, record = load_audio_states(path)
        assert found.equal(states) and record == (encoder or unknown)
    save_audio_embeds(path, states, replace(HUBERT, states_hz=-1.0))
    with pytest.raises(InputError, match="audio_encoder has values of other kinds; extract it again"):
        load_audio_states(path)


def test_states_of_two_encoders_do_not_mix(records, tmp_path):
    wav2vec2 = EncoderRecord("wav2vec2", "aaaa", None, 50.0)
    encoders = {"no": None, "w": wav2vec2, "w2": replace(wav2vec2, digest="bbbb"), "h": HUBERT}
    clips = {name: write_clip(tmp_path, name, encoder=encoder) for name, encoder in encoders.items()}

    def dataset(*names: str, **options) -> TalkingFaceDataset:
        save_metadata(tmp_path / "m.json", [clips[name] for name in names])
        return TalkingFaceDataset(make_config(tmp_path / "m.json"), seed=0, **options)

    for fine in (("no", "w"), ("w", "no"), ("w2", "w2"), ("h", "h")):
        assert len(dataset(*fine)) == 2
    pytest.importorskip("pyarrow")
    for index in ("w", "h"):
        dataset(index)
        write_index(tmp_path / "m.json", tmp_path / f"{index}.parquet", None)
    for path, needed in (("w", wav2vec2), ("h", HUBERT)):
        config = make_config(tmp_path / f"{path}.parquet")
        assert len(TalkingFaceDataset(config, seed=0, audio_encoder=needed)[0]["frame_ids"]) == 4
        with pytest.raises(
            InputError, match=rf"{path}\.parquet row 1: its hidden states are by .*; needed is hubert ffff"
        ):
            TalkingFaceDataset(config, seed=0, audio_encoder=replace(HUBERT, digest="ffff"))
    save_audio_embeds(clips["h"].audio_embeds, load_audio_states(clips["h"].audio_embeds)[0], wav2vec2)
    with pytest.raises(
        InputError, match=r"h\.mp4: its hidden states are by wav2vec2 aaaa, last layer; needed is hubert"
    ):
        TalkingFaceDataset(make_config(tmp_path / "h.parquet"), seed=0)[0]
    clips["h"] = write_clip(tmp_path, "h", encoder=HUBERT)
    for mixed in (("w", "h"), ("no", "h"), ("w", "w2"), ("no", "w", "w2"), ("w", "no", "w2")):
        with pytest.raises(InputError, match=rf"m\.json row {len(mixed)}: .* extract-audio-embeddings --overwrite"):
            dataset(*mixed)
    with pytest.raises(InputError, match="row 1: .* are by hubert 0123456789abcdef, layer 9; needed is wav2vec2 aaaa"):
        dataset("h", audio_encoder=wav2vec2)
    assert len(dataset("no", audio_encoder=wav2vec2)) == 1
