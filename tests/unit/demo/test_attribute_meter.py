"""The meter of attributes on frames whose attributes are known."""

import dataclasses

import cv2
import numpy as np
import pytest

from scripts.demo.attribute_meter import measure_attributes
from scripts.demo.drawn_faces import render_frame
from scripts.demo.drawn_people import random_motion, random_person
from scripts.demo.mouth_meter import measure_mouth
from vexpress.models.attributes import ATTRIBUTES

NUM_FRAMES, FPS = 40, 30
TIME = np.arange(NUM_FRAMES) / FPS
MOUTH = np.stack([0.5 + 0.5 * np.sin(9 * TIME), 0.5 + 0.4 * np.sin(5.3 * TIME)], 1)


def render(seed: int, size_px: int = 128, **asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames, a little soft as generated ones are, and keypoints."""
    rng = np.random.default_rng(seed)
    person, motion = random_person(rng), random_motion(rng, NUM_FRAMES, FPS)
    rest = {"lids": np.ones((NUM_FRAMES, 2)), "gaze": np.zeros((NUM_FRAMES, 2))}
    rest |= {"brows": np.zeros(NUM_FRAMES), "smile": np.zeros(NUM_FRAMES)}
    motion = dataclasses.replace(motion, **rest | asked)
    frames = [render_frame(person, motion.row(i), MOUTH[i], size_px) for i in range(NUM_FRAMES)]
    pixels = np.stack([cv2.GaussianBlur(frame.pixels, (0, 0), 0.8 * size_px / 128) for frame in frames])
    return pixels, np.stack([frame.kps for frame in frames])


def waves(seed: int) -> dict[str, np.ndarray]:
    """Attributes that all move, each at its own speed; lids are open most of the time."""
    phases = np.random.default_rng(seed).uniform(0, 6, 6)
    one, two, x, y, brows, smile = np.sin(np.outer([11, 13, 7, 8.5, 5, 6], TIME) + phases[:, None])
    lids = np.stack([np.clip(1.3 + 1.3 * one, 0, 1), np.clip(1.3 + 1.3 * two, 0, 1)], 1)
    return {"lids": lids, "gaze": np.stack([x, y], 1), "brows": brows, "smile": 0.5 + 0.5 * smile}


def columns_of(asked: dict[str, np.ndarray]) -> np.ndarray:
    return np.column_stack([asked[name] for name in ("lids", "gaze", "brows", "smile")])


def test_measures_what_was_drawn_at_any_size():
    found = []
    for seed, size_px in ((1, 128), (2, 128), (3, 128), (4, 256)):
        asked = waves(seed)
        measured, drawn = measure_attributes(*render(seed, size_px, **asked)), columns_of(asked)
        seen = np.isfinite(measured)
        found.append([np.corrcoef(measured[s, i], drawn[s, i])[0, 1] for i, s in enumerate(seen.T)])
        assert np.abs(np.nanmean(measured - drawn, axis=0))[[0, 1, 2, 4, 5]].max() < 0.25  # on the drawings' own scale
    assert (np.mean(found, axis=0) > [0.95, 0.95, 0.95, 0.85, 0.99, 0.95]).all(), np.mean(found, axis=0)


@pytest.mark.parametrize("kind", ["lids", "gaze", "brows", "smile"])
def test_one_moves_without_the_others(kind):
    frames, kps = render(5, **{kind: waves(5)[kind]})
    still, _ = render(5)
    measured, at_rest = measure_attributes(frames, kps), measure_attributes(still, kps)
    own = {"lids": [0, 1], "gaze": [2, 3], "brows": [4], "smile": [5]}[kind]
    for column, name in enumerate(ATTRIBUTES):
        moved = np.nanmean(np.abs(measured[:, column] - at_rest[:, column]))
        assert (moved > 0.15) if column in own else (moved < 0.1), f"{name} moves by {moved:.2f} with {kind}"
    aperture = [measure_mouth(pixels, kps)[:, 0] for pixels in (frames, still)]
    assert np.corrcoef(*aperture)[0, 1] > 0.995


def test_where_a_closed_eye_looks_is_not_known():
    frames, kps = render(6, lids=np.zeros((NUM_FRAMES, 2)))
    measured = measure_attributes(frames, kps)
    assert np.isnan(measured[:, 2:4]).all() and np.abs(measured[:, :2]).max() < 0.3
