import dataclasses

import cv2
import numpy as np
import pytest

from scripts.demo.drawn_faces import face_info, render_frame
from scripts.demo.drawn_people import random_motion, random_person
from scripts.demo.mouth_meter import STILL, measure_mouth
from vexpress.errors import InputError
from vexpress.evaluation.mouth import mouth_from_landmarks

NUM_FRAMES, FPS = 40, 30
LIGHT, DARK = (238.0, 200, 170), (122.0, 82, 58)


def render_clip(seed: int, size_px: int = 128, skin: tuple[float, ...] | None = None):
    """Frames, the face in them, and aperture and width."""
    rng = np.random.default_rng(seed)
    person, motion = random_person(rng), random_motion(rng, NUM_FRAMES, FPS)
    if skin is not None:
        lips = tuple(0.4 * a + 0.6 * b for a, b in zip(skin, (172, 62, 72)))
        person = dataclasses.replace(person, skin=skin, lips=lips)
    time = np.arange(NUM_FRAMES) / FPS
    mouth = np.stack([0.5 + 0.5 * np.sin(9 * time + seed), 0.5 + 0.4 * np.sin(5.3 * time)], 1).astype(np.float32)
    frames = [render_frame(person, motion.row(i), mouth[i], size_px) for i in range(NUM_FRAMES)]
    return np.stack([frame.pixels for frame in frames]), face_info(frames), mouth


def correlations(measured: np.ndarray, mouth: np.ndarray) -> np.ndarray:
    return np.array([np.corrcoef(measured[:, i], mouth[:, i])[0, 1] for i in (0, 1)])


@pytest.mark.parametrize("skin", [LIGHT, DARK], ids=["light", "dark"])
def test_measures_what_was_drawn(skin):
    found = []
    for seed in range(6):
        frames, info, mouth = render_clip(seed, skin=skin)
        measured = measure_mouth(frames, info.kps)
        found.append(correlations(measured, mouth))
        assert np.abs(measured - mouth).mean(0).max() < 0.25  # on the drawings' own scale
    assert (np.mean(found, 0) > (0.98, 0.95)).all()


def test_mouths_that_stay_closed_are_still():
    noise = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        person, motion = random_person(rng), random_motion(rng, NUM_FRAMES, FPS)
        frames = [render_frame(person, motion.row(i), np.array([0, 0.5]), 96) for i in range(NUM_FRAMES)]
        measured = measure_mouth(np.stack([frame.pixels for frame in frames]), face_info(frames).kps)
        noise.append(measured[:, 0].std())
    assert max(noise) < STILL
    assert 3 * np.mean(noise) == pytest.approx(STILL, rel=0.3)


@pytest.mark.parametrize("size_px", [96, 256])
def test_size_does_not_matter(size_px):
    frames, info, mouth = render_clip(3, size_px)
    assert (correlations(measure_mouth(frames, info.kps), mouth) > (0.98, 0.95)).all()


@pytest.mark.parametrize("skin", [LIGHT, DARK], ids=["light", "dark"])
def test_blur_and_drifting_colours_do_little(skin):
    found = []
    for seed in range(4):
        frames, info, mouth = render_clip(seed, skin=skin)
        frames = np.stack([cv2.GaussianBlur(frame, (0, 0), 1.0) for frame in frames])
        frames = np.clip(frames * [1.08, 0.97, 0.9] * 0.85, 0, 255).astype(np.uint8)
        found.append(correlations(measure_mouth(frames, info.kps), mouth))
    assert (np.mean(found, 0) > (0.96, 0.9)).all()


def test_three_keypoints_are_enough_and_a_frame_without_face_is_unknown():
    frames, info, mouth = render_clip(1)
    kps = info.kps[:, :3].copy()
    kps[5] = np.nan
    measured = measure_mouth(frames, kps)
    assert np.isnan(measured[5]).all()
    known = np.arange(NUM_FRAMES) != 5
    assert correlations(measured[known], mouth[known])[0] > 0.97


def test_no_mouth_is_unknown():
    frames, info, _ = render_clip(1)
    assert np.isnan(measure_mouth(np.full_like(frames, 128), info.kps)).all()


def test_frames_and_keypoints_must_agree():
    frames, info, _ = render_clip(1)
    with pytest.raises(InputError, match="keypoints of 39"):
        measure_mouth(frames, info.kps[1:])


def test_landmarks_tell_the_same():
    _, info, mouth = render_clip(2)
    assert (correlations(mouth_from_landmarks(info.landmark_2d_106, info.kps), mouth) > 0.97).all()
