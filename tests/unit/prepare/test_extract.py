"""Face info of a clip, and which videos are found."""

import numpy as np
import pytest

from vexpress.errors import InputError
from vexpress.media.faces import Face
from vexpress.prepare.extract import build_face_info, find_videos


def face(x, y=100.0, size=50.0):
    box = np.array([x - size / 2, y - size / 2, x + size / 2, y + size / 2], np.float32)
    kps = np.array([[-10, -10], [10, -10], [0, 0], [-7, 10], [7, 10]], np.float32) + np.float32([x, y])
    landmarks = np.full((106, 2), [x, y], np.float32)
    return Face(box, kps, 0.9, landmarks, np.full(512, x, np.float32))


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


def test_videos_are_found_at_any_depth_but_not_hidden_nor_in_the_output(tmp_path):
    for name in ("b.MP4", "a/x y.mov", "a/.part.mp4", ".git/c.mp4", "out/d.mp4", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_videos(tmp_path, leave_out=tmp_path / "out") == [tmp_path / "a" / "x y.mov", tmp_path / "b.MP4"]
