import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.clips import make_face_info
from vexpress.data import arrays
from vexpress.data.arrays import float_item, shape_of
from vexpress.data.formats import (
    ClipRecord,
    FaceInfo,
    audio_length_problem,
    load_audio_embeds,
    load_face_info,
    load_metadata,
    save_audio_embeds,
    save_face_info,
    save_metadata,
)
from vexpress.errors import InputError

TRAINING_CLIP = Path(__file__).parents[4] / "shared" / "samples" / "training_clip"
NUM_FRAMES = 7


@pytest.fixture
def face_info() -> FaceInfo:
    embedding = np.random.default_rng(0).standard_normal((NUM_FRAMES, 512)).astype(np.float32)
    return replace(make_face_info(NUM_FRAMES), embedding=embedding)


def released_frames(info: FaceInfo) -> list:
    """As the released extraction writes it."""
    return [
        [
            {
                "bbox": info.bbox[i],
                "kps": info.kps[i],
                "det_score": info.det_score[i],
                "landmark_3d_68": None,
                "landmark_2d_106": info.landmark_2d_106[i],
                "gender": np.int64(1),
                "age": 30,
            }
        ]
        for i in range(info.num_frames)
    ]


def assert_same(info: FaceInfo, expected: FaceInfo) -> None:
    for name, array in vars(expected).items():
        if array is None:
            assert getattr(info, name) is None
        else:
            assert getattr(info, name).dtype == np.float32
            np.testing.assert_array_equal(getattr(info, name), array)


class RunsCode:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


# Face info ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("suffix", [".npz", ".pt", ".pth"])
@pytest.mark.parametrize("with_embedding", [True, False])
def test_face_info_comes_back_as_it_was(tmp_path, face_info, suffix, with_embedding):
    face_info = face_info if with_embedding else replace(face_info, embedding=None)
    save_face_info(tmp_path / f"info{suffix}", face_info)
    loaded = load_face_info(tmp_path / f"info{suffix}")
    assert loaded.num_frames == NUM_FRAMES
    assert_same(loaded, face_info)


def test_released_face_info_is_read_and_written(tmp_path, face_info):
    torch.save(released_frames(face_info), tmp_path / "released.pt")
    assert_same(load_face_info(tmp_path / "released.pt"), replace(face_info, embedding=None))
    save_face_info(tmp_path / "ours.pt", face_info)
    frames = torch.load(tmp_path / "ours.pt", weights_only=True)  # without a list of safe types
    assert isinstance(frames, list)
    assert [len(faces) for faces in frames] == [1] * NUM_FRAMES
    np.testing.assert_array_equal(frames[3][0]["kps"], face_info.kps[3])
    assert frames[3][0]["landmark_2d_106"].shape == (106, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frames: frames[2].clear(), r"1 of 7 frames \(2\)"),
        (lambda frames: [faces.append(faces[0]) for faces in frames], r"7 of 7 frames \(0, 1, 2, 3, 4, \.\.\.\)"),
        (lambda frames: frames[1][0].pop("kps"), "kps"),
        (lambda frames: frames[1][0].update(landmark_2d_106=np.zeros((68, 2), np.float32)), "landmark_2d_106"),
        (lambda frames: frames.clear(), "no frames|bbox"),
        (lambda frames: frames.append({}), "list of one dictionary|1 of 8"),
        (lambda frames: frames.append(3), "list of one dictionary"),
    ],
)
def test_unusable_face_info_is_refused(tmp_path, face_info, change, message):
    frames = released_frames(face_info)
    change(frames)
    path = tmp_path / "face_info.pt"
    torch.save(frames, path)
    with pytest.raises(InputError, match=message) as error:
        load_face_info(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("load", [load_face_info, load_audio_embeds])
def test_no_code_in_a_file_is_run(tmp_path, load):
    path = tmp_path / "evil.pt"
    torch.save([[{"kps": RunsCode(tmp_path / "made")}]], path)
    with pytest.raises(InputError, match="can run code"):
        load(path)
    np.savez(tmp_path / "evil.npz", kps=np.array([RunsCode(tmp_path / "made")], dtype=object))
    with pytest.raises(InputError, match="damaged"):
        load(tmp_path / "evil.npz")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_damaged_face_info_names_the_file(tmp_path, face_info, suffix):
    path = tmp_path / f"cut{suffix}"
    save_face_info(path, face_info)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="cut.*damaged"):
        load_face_info(path)
    path.write_bytes(pickle.dumps([1], protocol=2))
    with pytest.raises(InputError, match="cut"):
        load_face_info(path)


@pytest.mark.parametrize(
    ("name", "message"), [("none.npz", "does not exist"), ("info.txt", r"end in \.npz"), ("dir.pt", "folder")]
)
def test_face_info_that_is_no_file(tmp_path, name, message):
    (tmp_path / "dir.pt").mkdir()
    with pytest.raises(InputError, match=message):
        load_face_info(tmp_path / name)


def test_arrays_of_different_lengths_are_refused(tmp_path, face_info):
    save_face_info(tmp_path / "info.npz", replace(face_info, kps=face_info.kps[:-1]))
    with pytest.raises(InputError, match="'kps': 6"):
        load_face_info(tmp_path / "info.npz")


# Audio hidden states --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt", ".pth"])
def test_audio_embeds_come_back_as_they_were(tmp_path, suffix):
    embeds = torch.randn(9, 24).T.contiguous().T  # not contiguous
    save_audio_embeds(tmp_path / f"a{suffix}", embeds)
    assert torch.equal(load_audio_embeds(tmp_path / f"a{suffix}"), embeds)
    if suffix == ".pt":
        assert torch.load(tmp_path / "a.pt", weights_only=True)["global_embeds"].shape == (9, 1, 24)


@pytest.mark.parametrize(
    "content",
    [
        {"global_embeds": torch.zeros(3, 2, 8)},
        {"other": torch.zeros(3, 8)},
        [1],
        {"global_embeds": torch.zeros(0, 1, 8)},
    ],
)
def test_unusable_audio_embeds_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"a\.pt: global_embeds has shape"):
        load_audio_embeds(tmp_path / "a.pt")


def test_half_precision_states_become_single(tmp_path):
    torch.save({"global_embeds": torch.ones(3, 1, 8, dtype=torch.float16)}, tmp_path / "a.pt")
    assert load_audio_embeds(tmp_path / "a.pt").dtype == torch.float32


# Metadata -------------------------------------------------------------------------------------------------------------
def test_metadata_comes_back_and_can_be_moved(tmp_path):
    inside, outside = tmp_path / "set", tmp_path / "other"
    inside.mkdir()
    full = ClipRecord(inside / "a.mp4", inside / "x" / "a.npz", outside / "a.pt", 2.5, 25.0, 62, inside / "a.wav")
    released = ClipRecord(outside / "b.mp4", outside / "b.pt", outside / "c.pt")
    save_metadata(inside / "metadata.json", [full, released])
    assert load_metadata(inside / "metadata.json") == [full, released]
    rows = json.loads((inside / "metadata.json").read_text())
    assert rows[0]["video"] == "a.mp4"
    assert rows[1] == {
        "video": str(outside / "b.mp4"),
        "face_info": str(outside / "b.pt"),
        "audio_embeds": str(outside / "c.pt"),
    }
    inside.rename(tmp_path / "moved")
    assert load_metadata(tmp_path / "moved" / "metadata.json")[0].face_info == tmp_path / "moved" / "x" / "a.npz"


def test_relative_metadata_path_and_odd_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = b"ni\xf1o \xff.mp4".decode(errors="surrogateescape")
    save_metadata("m.json", [ClipRecord(Path(name), Path("ä.npz"), Path("-a.pt"))])
    assert load_metadata("m.json") == [ClipRecord(Path(name), Path("ä.npz"), Path("-a.pt"))]


GOOD_ROW = {"video": "a.mp4", "face_info": "a.pt", "audio_embeds": "b.pt"}


def test_other_keys_are_ignored_and_null_is_absent(tmp_path):
    (tmp_path / "m.json").write_text(json.dumps([GOOD_ROW | {"title": "x", "fps": None, "audio": None}]))
    [record] = load_metadata(tmp_path / "m.json")
    assert (record.fps, record.audio, record.num_frames) == (None, None, None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (3, "is a int"),
        ({"video": "a.mp4", "face_info": "a.pt"}, 'has no "audio_embeds"'),
        (GOOD_ROW | {"video": 5}, '"video" is 5'),
        (GOOD_ROW | {"face_info": ""}, '"face_info" is ""'),
        (GOOD_ROW | {"fps": "25"}, '"fps" is "25"'),
        (GOOD_ROW | {"duration": float("nan")}, '"duration" is NaN'),
        (GOOD_ROW | {"num_frames": 61.5}, '"num_frames" is 61.5'),
        (GOOD_ROW | {"num_frames": True}, '"num_frames" is true'),
        (GOOD_ROW | {"num_frames": 0}, '"num_frames" is 0'),
    ],
)
def test_malformed_row_is_named(tmp_path, row, message):
    path = tmp_path / "m.json"
    path.write_text(json.dumps([GOOD_ROW, row]))
    with pytest.raises(InputError, match=message) as error:
        load_metadata(path)
    assert f"{path} row 2 of 2" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"), [("[{", "not valid JSON"), ("{}", "holds a dict"), ("\xff", "not valid JSON")]
)
def test_malformed_file_is_named(tmp_path, text, message):
    path = tmp_path / "m.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=f"m.json.*{message}"):
        load_metadata(path)


def test_missing_metadata_is_named(tmp_path):
    with pytest.raises(InputError, match="none.json: cannot be read"):
        load_metadata(tmp_path / "none.json")


# Real files -----------------------------------------------------------------------------------------------------------
@pytest.mark.skipif(not TRAINING_CLIP.exists(), reason="the sample training clip is not beside the repository")
def test_real_released_files(tmp_path):
    info = load_face_info(TRAINING_CLIP / "face_info.pt")
    assert info.num_frames == 61
    assert info.embedding.shape == (61, 512)
    x1, y1, x2, y2 = info.bbox.T
    nose_x, nose_y = info.kps[:, 2].T
    assert ((x1 < nose_x) & (nose_x < x2) & (y1 < nose_y) & (nose_y < y2)).all()
    assert load_audio_embeds(TRAINING_CLIP / "aud_embeds.pt").shape == (102, 768)
    save_face_info(tmp_path / "again.npz", info)
    assert_same(load_face_info(tmp_path / "again.npz"), info)


# Files as attackers and accidents make them ---------------------------------------------------------------------------
ODD_TENSORS = {
    "complex": torch.zeros(8, 24, dtype=torch.complex64),
    "quantized": torch.quantize_per_tensor(torch.zeros(8, 24), 1.0, 0, torch.quint8),
    "sparse": torch.eye(8).to_sparse(),
    "meta": torch.empty(8, 24, device="meta"),
    "nested": torch.nested.nested_tensor([torch.zeros(2, 24), torch.zeros(3, 24)]),
    "a terabyte in four bytes": torch.zeros(1, 1).expand(2**36, 4),
    "text": "text",
    "nothing": None,
    "lists in lists": [[[0.0]]],
    "no dimension": torch.zeros(()),
    "no values": torch.zeros(0, 24),
}


@pytest.mark.parametrize("value", ODD_TENSORS.values(), ids=ODD_TENSORS)
def test_odd_values_are_refused(tmp_path, face_info, value):
    frames = released_frames(face_info)
    frames[2][0]["kps"] = value
    torch.save(frames, tmp_path / "odd.pt")
    with pytest.raises(InputError, match=r"odd\.pt"):
        load_face_info(tmp_path / "odd.pt")
    torch.save({"global_embeds": value}, tmp_path / "odd.pt")
    with pytest.raises(InputError, match=r"odd\.pt: global_embeds"):
        load_audio_embeds(tmp_path / "odd.pt")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.int32, torch.uint16])
def test_other_number_types_are_read_as_what_they_are(tmp_path, dtype):
    states = torch.arange(6).reshape(3, 2).to(dtype)
    torch.save({"global_embeds": states}, tmp_path / "a.pt")
    assert load_audio_embeds(tmp_path / "a.pt").tolist() == [[0, 1], [2, 3], [4, 5]]
    torch.save({"global_embeds": torch.ones(3, 2, requires_grad=True)}, tmp_path / "a.pt")
    assert not load_audio_embeds(tmp_path / "a.pt").requires_grad
    np.savez(tmp_path / "a.npz", global_embeds=np.ones((3, 2), ">f4"))
    assert load_audio_embeds(tmp_path / "a.npz").sum() == 6


@pytest.mark.parametrize("array", [torch.zeros(2**22, dtype=torch.int8), np.zeros(2**22, np.int8), [0] * 2**10])
@pytest.mark.parametrize("names", [("bbox", "kps", "landmark_2d_106", "det_score"), ("embedding",)])
def test_sizes_are_looked_at_before_anything_is_converted(tmp_path, face_info, monkeypatch, array, names):
    """One array that all frames refer to is small in the file, and would be converted as often as there are frames."""
    frame = released_frames(face_info)[0][0] | dict.fromkeys(names, array)
    torch.save([[frame]] * 30_000, tmp_path / "large.pt")
    converted = []
    monkeypatch.setattr(arrays, "float_item", lambda value: converted.append(value) or float_item(value))
    with pytest.raises(InputError, match=rf"large\.pt: {names[0]}"):
        load_face_info(tmp_path / "large.pt")
    assert not any(shape_of(value) == shape_of(array) for value in converted)


def test_frames_that_refer_to_one_are_bounded(tmp_path, face_info):
    frame = released_frames(face_info)[0]
    torch.save([frame] * 1000, tmp_path / "still.pt")  # of a still picture
    assert load_face_info(tmp_path / "still.pt").num_frames == 1000
    torch.save([frame] * 200_000, tmp_path / "large.pt")
    with pytest.raises(InputError, match="landmark_2d_106 of a frame has shape"):
        load_face_info(tmp_path / "large.pt")


def test_face_info_cannot_grow_in_memory(tmp_path, face_info):
    """Frames that all refer to one large array would take its size times their number."""
    frames = released_frames(face_info)
    large = np.zeros(2**18, np.float32)
    torch.save([[{**faces[0], "kps": large}] for faces in frames * 1000], tmp_path / "large.pt")
    with pytest.raises(InputError, match="kps of a frame has shape"):
        load_face_info(tmp_path / "large.pt")
    np.savez_compressed(tmp_path / "bomb.npz", kps=np.zeros(2**26, np.float32))
    with pytest.raises(InputError, match=r"bomb\.npz: unpacks to 256 MiB"):
        load_face_info(tmp_path / "bomb.npz")


@pytest.mark.parametrize("load", [load_face_info, load_audio_embeds])
def test_damaged_files_are_one_line(tmp_path, face_info, load):
    save_face_info(tmp_path / "face.pt", face_info)
    save_audio_embeds(tmp_path / "audio.pt", torch.zeros(9, 4))
    save_audio_embeds(tmp_path / "audio.npz", torch.zeros(9, 4))
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        for content in (b"", b"a text, not weights\n", whole[: len(whole) // 2], whole[:-3], whole[::-1]):
            broken = tmp_path / f"broken{path.suffix}"
            broken.write_bytes(content)
            with pytest.raises(InputError, match="broken") as caught:
                load(broken)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("load", [load_face_info, load_audio_embeds, load_metadata])
@pytest.mark.parametrize("path", [None, 3, b"bytes", ["a"]])
def test_what_is_no_path_is_named(load, path):
    with pytest.raises(InputError, match="must be a path"):
        load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video": ["a"]}, '"video" is'),
        ({"video": {"a": 1}}, '"video" is'),
        ({"video": "a\0b"}, '"video" is'),
        ({"video": "\ud800"}, '"video" is'),
        ({"num_frames": 10**400}, '"num_frames" is'),
        ({"num_frames": 3.0}, '"num_frames" is'),
        ({"fps": -1}, '"fps" is'),
        ({"duration": float("inf")}, '"duration" is'),
    ],
)
def test_odd_metadata_is_named(tmp_path, change, message):
    row = {"video": "a.mp4", "face_info": "a.npz", "audio_embeds": "a.pt"}
    (tmp_path / "m.json").write_text(json.dumps([{**row, **change}]))
    with pytest.raises(InputError, match=message) as caught:
        load_metadata(tmp_path / "m.json")
    assert "\n" not in str(caught.value)


def test_json_nested_a_million_deep_is_one_line(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 10**6)
    with pytest.raises(InputError, match=r"deep\.json: is not valid JSON"):
        load_metadata(tmp_path / "deep.json")


def test_audio_states_span_the_clip():
    assert audio_length_problem(149, 3.0) is None  # wav2vec2 makes one state fewer
    assert "49 states are 0.98 s, the frames last 3.00 s" in audio_length_problem(49, 3.0)
    assert audio_length_problem(300, 3.0)
