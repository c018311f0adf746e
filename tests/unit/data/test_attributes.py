"""Labels of attributes: files, mirrored frames, and what landmarks say."""

import numpy as np
import pytest

from vexpress.data.attributes import (
    attributes_from_landmarks,
    load_attributes,
    mirror_attributes,
    save_attributes,
)
from vexpress.data.transforms import BROWS, EYES, OUTER_LIPS
from vexpress.errors import InputError


def face(lid_left: float = 1, lid_right: float = 1, brows: float = 0, lift: float = 0) -> np.ndarray:
    """Landmarks (106 2) px of an upright face, eyes 100 px apart."""
    points = np.zeros((106, 2))
    angle = np.linspace(0, 2 * np.pi, 11)[:-1]
    for x, eye, brow, lid in zip((150, 250), EYES, BROWS, (lid_left, lid_right)):
        height = 10 * (0.35 + 0.65 * lid)  # landmarks of a closed eye do not meet
        points[eye] = np.stack([x + 20 * np.cos(angle), 100 + height * np.sin(angle)], 1)
        points[brow] = np.stack([x + np.linspace(-25, 25, 9), np.full(9, 70 - 10 * brows)], 1)
    points[86] = (200, 150)
    angle = np.linspace(np.pi, 3 * np.pi, 13)[:-1]
    points[OUTER_LIPS] = np.stack([200 + 40 * np.cos(angle), 200 - lift * np.abs(np.cos(angle)) ** 9], 1)
    return points


def test_landmarks_give_lids_brows_and_smile_and_no_gaze():
    lids = np.ones((60, 2))
    lids[20:23, 0], lids[40:43, 1] = 0, 0.5
    brows = np.where(np.arange(60) > 45, 1.0, 0)
    lift = np.where(np.arange(60) < 20, 12.0, 0)
    frames = np.stack([face(*lid, brow, up) for lid, brow, up in zip(lids, brows, lift)])
    turn = np.array([[0.8, 0.6], [-0.6, 0.8]])
    for points in (frames, frames @ turn * 1.7 + 31):  # any place, size and roll
        values = attributes_from_landmarks(points)
        assert values.shape == (60, 6) and values.dtype == np.float32
        assert np.isnan(values[:, 2:4]).all()
        np.testing.assert_allclose(values[:, :2], lids, atol=0.03)
        np.testing.assert_allclose(values[:, 4], brows, atol=0.03)
        assert values[:10, 5].min() > 0.9 and values[35:, 5].max() < 0.1


def test_a_still_face_is_at_rest_and_noise_does_not_fill_the_range():
    rng = np.random.default_rng(0)
    frames = np.stack([face()] * 50) + rng.normal(0, 0.2, (50, 106, 2))
    values = attributes_from_landmarks(frames)
    assert np.abs(values[:, 4]).max() < 0.1 and values[:, 5].max() < 0.2 and values[:, :2].min() > 0.85


def test_a_face_of_no_size_is_not_known():
    assert np.isnan(attributes_from_landmarks(np.zeros((4, 106, 2)))).all()


def test_a_mirrored_face_has_its_lids_and_gaze_exchanged():
    values = np.array([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]], np.float32)
    np.testing.assert_allclose(mirror_attributes(values), [[0.2, 0.1, -0.3, 0.4, 0.5, 0.6]])
    np.testing.assert_array_equal(values[0, :3], np.float32([0.1, 0.2, 0.3]))  # not in place


def test_files_come_back_and_odd_ones_are_one_line(tmp_path):
    values = np.array([[1, 0, np.nan, 0.5, -1, 1]] * 3, np.float32)
    save_attributes(tmp_path / "a.npz", values)
    np.testing.assert_array_equal(load_attributes(tmp_path / "a.npz"), values)
    for odd in (values[:, :5], values[:0], values + 0.5, values[0], np.full((2, 6), np.inf)):
        save_attributes(tmp_path / "a.npz", odd)
        with pytest.raises(InputError, match="attributes .*a.npz: .*(shape|is not -?[01] to 1)"):
            load_attributes(tmp_path / "a.npz")
