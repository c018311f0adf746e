"""Cutting in time and space, what is rejected, face info of a clip, merging."""

import json
import os
import pickle

import numpy as np
import pytest
import torch

from vexpress.errors import InputError
from vexpress.media.audio import Audio
from vexpress.media.faces import Face, head_and_shoulders_box
from vexpress.prepare import records
from vexpress.prepare.extract import build_face_info, find_videos
from vexpress.prepare.folder import Preparation
from vexpress.prepare.pieces import compute_crop, crop_frame, split_into_pieces
from vexpress.prepare.records import merge_records
from vexpress.prepare.settings import PrepareSettings
from vexpress.prepare.source import Rejected, check_speech, cut_audio

HERE, AWAY = [10, 10, 50, 60], [200, 10, 240, 60]


def frames_of(*groups):
    """(count, box, box, ...) per group -> per frame the boxes (n 4)."""
    return [np.array(boxes, np.float32) for count, *boxes in groups for _ in range(count)]


def cuts_of(pieces):
    return [(piece.start, piece.stop, len(piece.boxes), piece.num_bad) for piece in pieces]


def face(x, y=100.0, size=50.0):
    box = np.array([x - size / 2, y - size / 2, x + size / 2, y + size / 2], np.float32)
    kps = np.array([[-10, -10], [10, -10], [0, 0], [-7, 10], [7, 10]], np.float32) + np.float32([x, y])
    landmarks = np.full((106, 2), [x, y], np.float32)
    return Face(box, kps, 0.9, landmarks, np.full(512, x, np.float32))


def test_a_face_is_followed_over_short_gaps():
    pieces = split_into_pieces(frames_of((5, HERE), (2,), (5, HERE)), max_gap=2, max_frames=100)
    assert cuts_of(pieces) == [(0, 12, 10, 2)]


def test_long_gaps_cut_and_no_frame_is_forgotten():
    pieces = split_into_pieces(frames_of((2,), (5, HERE), (3,), (5, HERE), (4,)), max_gap=2, max_frames=100)
    assert cuts_of(pieces) == [(0, 2, 0, 2), (2, 7, 5, 0), (7, 10, 0, 3), (10, 15, 5, 0), (15, 19, 0, 4)]


def test_a_jump_cuts_and_a_bystander_does_not():
    pieces = split_into_pieces(frames_of((5, HERE), (5, AWAY, HERE), (5, AWAY)), max_gap=2, max_frames=100)
    assert cuts_of(pieces) == [(0, 10, 10, 5), (10, 15, 5, 0)]
    np.testing.assert_array_equal(pieces[0].boxes, [HERE] * 10)


@pytest.mark.parametrize(("num_frames", "lengths"), [(10, [10]), (11, [5, 6]), (20, [10, 10]), (31, [7, 8, 8, 8])])
def test_what_is_too_long_is_cut_into_equal_parts(num_frames, lengths):
    pieces = split_into_pieces(frames_of((num_frames, HERE)), max_gap=0, max_frames=10)
    assert [piece.num_frames for piece in pieces] == lengths


def test_a_video_without_a_face_is_one_piece():
    assert cuts_of(split_into_pieces(frames_of((7,)), max_gap=2, max_frames=3)) == [(0, 7, 0, 7)]


@pytest.mark.parametrize("box", [[200, 100, 300, 230], [5, 5, 120, 140], [350, 200, 470, 350], [100, 20, 300, 340]])
def test_the_crop_of_one_face_is_that_of_inference(box):
    left, top, side = compute_crop(np.array([box], float), 480, 360, margin=0.6)
    assert (left, top, left + side, top + side) == head_and_shoulders_box(np.array(box), 480, 360)


def test_the_crop_holds_all_faces_and_stays_in_the_frame():
    rng = np.random.default_rng(0)
    for _ in range(300):
        width, height = rng.integers(200, 2000, 2)
        corners = rng.uniform(0, 0.6, (20, 2)) * [width, height]
        boxes = np.hstack([corners, corners + rng.uniform(20, 80, (20, 2))])
        left, top, side = compute_crop(boxes, width, height, rng.uniform(0, 1))
        low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0).clip(max=[width, height])
        assert (low >= np.array([left, top]) - 1).all() and (high <= np.array([left, top]) + side + 1).all()
        if max(high - low) < min(width, height) - 1:
            assert left >= 0 and top >= 0 and left + side <= width and top + side <= height


def test_a_crop_beyond_the_frame_repeats_its_border():
    frame = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    np.testing.assert_array_equal(crop_frame(frame, 2, 1, 4, 4), frame[1:5, 2:6])
    beyond = crop_frame(frame, 0, -1, 8, 8)
    np.testing.assert_array_equal(beyond, frame[[0, 0, 1, 2, 3, 4, 5, 5]])
    assert crop_frame(frame, 0, 0, 6, 24).shape == (24, 24, 3)


def test_sound_is_cut_and_padded_with_silence():
    audio = Audio(np.ones((2, 100), np.float32), 100)
    part = cut_audio(audio, 0.5, 1.5)
    assert part.samples.shape == (2, 100) and part.samples.sum() == 100
    assert cut_audio(audio, 3, 4).samples.sum() == 0


@pytest.mark.parametrize(
    ("waveform", "is_speech"),
    [
        (torch.zeros(16000), False),
        (torch.full((16000,), 0.5), False),  # an offset
        (torch.randn(16000) * 1e-3, False),  # -60 dB
        (torch.randn(16000) * 0.03, True),  # -30 dB
        (torch.cat([torch.zeros(12000), torch.randn(4000) * 0.03]), True),
        (torch.cat([torch.zeros(15000), torch.randn(1000) * 0.03]), False),
    ],
)
def test_speech_is_what_is_loud_for_long_enough(waveform, is_speech):
    settings = PrepareSettings()
    if is_speech:
        check_speech(waveform, 16000, settings)
    else:
        with pytest.raises(Rejected) as rejection:
            check_speech(waveform, 16000, settings)
        assert rejection.value.reason == "no_speech" and "-45 dB" in rejection.value.detail


def test_face_info_follows_one_face_and_fills_all_its_values():
    frames = [[face(100)], [], [face(104), face(300, size=40)], [face(400, size=90), face(106)]]
    info, filled = build_face_info(frames, max_gap=1, field="the clip")
    assert filled == [1]
    xs = [100, 102, 104, 106]
    np.testing.assert_allclose(info.kps[:, 2, 0], xs)
    np.testing.assert_allclose(info.landmark_2d_106[:, 60, 0], xs)
    np.testing.assert_allclose(info.embedding[:, 0], xs)
    np.testing.assert_allclose(info.bbox[:, 0], np.array(xs) - 25)
    assert info.det_score.shape == (4,) and all(values.dtype == np.float32 for values in vars(info).values())


def test_a_long_gap_is_named():
    with pytest.raises(InputError, match="the clip: the face is missing in frames 1-2 of 4"):
        build_face_info([[face(100)], [], [], [face(100)]], max_gap=1, field="the clip")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", 8),
        ("fps", 0),
        ("fps", float("nan")),
        ("min_clip_seconds", 0),
        ("max_clip_seconds", 3),
        ("margin", float("nan")),
        ("max_bad_fraction", 1.5),
        ("speech_db", 3),
        ("max_gap", -1),
        ("format", "zip"),
    ],
)
def test_settings_that_cannot_be_are_named(name, value):
    with pytest.raises(InputError, match=f"{name}={value}: must be"):
        PrepareSettings(**{name: value})


def test_videos_are_found_at_any_depth_but_not_hidden_nor_in_the_output(tmp_path):
    for name in ("b.MP4", "a/x y.mov", "a/.part.mp4", ".git/c.mp4", "out/d.mp4", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_videos(tmp_path, leave_out=tmp_path / "out") == [tmp_path / "a" / "x y.mov", tmp_path / "b.MP4"]


def test_each_source_has_its_own_valid_folder(tmp_path):
    preparation = Preparation(tmp_path, tmp_path / "out", PrepareSettings(), tmp_path, tmp_path)
    names = ["a.mp4", "a.mov", "sub/a.mp4", "ü" * 100 + ".mp4", "a b.mp4", "a_b.mp4", os.fsdecode(b"\xff.mp4")]
    folders = [preparation.folder_of(tmp_path / name).name for name in names]
    assert len(set(folders)) == len(names)
    assert all(name.isascii() and len(name) < 60 and "/" not in name and " " not in name for name in folders)
    assert pickle.loads(pickle.dumps(preparation)) == preparation  # as workers get it  # noqa: S301


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
    save = records.save_metadata

    def save_while_another_process_ends(*arguments):
        save(*arguments)
        if not (tmp_path / "clips" / "two").exists():
            (tmp_path / "clips" / ".two.part").rename(tmp_path / "clips" / "two")

    monkeypatch.setattr(records, "save_metadata", save_while_another_process_ends)
    num_clips, reasons = merge_records(tmp_path)
    assert num_clips == 2 and reasons == {"too_short": 2}
    videos = [row["video"] for row in json.loads((tmp_path / "metadata.json").read_text())]
    assert videos == ["clips/one/0.mp4", "clips/two/0.mp4"]
    assert len((tmp_path / "rejected.jsonl").read_text().splitlines()) == 2
