"""Drawn faces: labels are where things are, and mouths do what the speech says."""

import numpy as np
import pytest

from scripts.demo.drawn_faces import INNER_LIPS, OUTER_LIPS, render_frame
from scripts.demo.drawn_people import mouth_from_speech, random_motion, random_person
from vexpress.data.transforms import LIPS

SIZE, FPS, RATE_HZ = 128, 30, 16000


def still(seed: int = 0, num_frames: int = 1, amount: float = 0.0):
    rng = np.random.default_rng(seed)
    return random_person(rng), random_motion(rng, num_frames, FPS, amount)


def tone(seconds: float, frequency_hz: float) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency_hz * np.arange(int(seconds * RATE_HZ)) / RATE_HZ).astype(np.float32)


def pixel(frame, point) -> np.ndarray:
    x, y = np.rint(point).astype(int)
    return frame.pixels[y, x].astype(float)


def test_a_seed_is_a_person():
    people = [still(seed) for seed in (1, 1, 2)]
    frames = [render_frame(person, motion.row(0), np.array([0.5, 0.5]), SIZE) for person, motion in people]
    assert np.array_equal(frames[0].pixels, frames[1].pixels)
    assert np.abs(frames[0].pixels.astype(float) - frames[2].pixels).mean() > 5


@pytest.mark.parametrize("seed", range(12))
def test_labels_are_where_things_are(seed):
    person, motion = still(seed, 5, amount=1.0)
    frame = render_frame(person, motion.row(3), np.array([1.0, 0.6]), SIZE)
    eyes, mouth = frame.kps[:2], frame.kps[3:]
    assert eyes[0, 0] < frame.kps[2, 0] < eyes[1, 0]
    assert mouth[0, 0] < mouth[1, 0] and (mouth[:, 1] > frame.kps[2, 1]).all()
    x1, y1, x2, y2 = frame.bbox
    assert ((frame.kps > (x1, y1)) & (frame.kps < (x2, y2))).all() and 0 < x1 < x2 < SIZE and 0 < y1 < y2 < SIZE
    assert sorted(OUTER_LIPS + INNER_LIPS) == list(range(LIPS.start, LIPS.stop))
    assert (
        pixel(frame, frame.landmarks[INNER_LIPS].mean(0)).mean() < min(np.mean(person.skin), np.mean(person.lips)) - 15
    )  # dark inside
    expected = [person.skin, person.hair, person.background[0]]
    for point, colour in zip(frame.probes, expected):
        np.testing.assert_allclose(pixel(frame, point), colour, rtol=0.13, atol=4)  # the light makes the rest


def test_labels_follow_the_head():
    person, motion = still(3)
    row = motion.row(0)
    moved = type(row)(**{**vars(row), "shift": row.shift + [0.05, -0.02]})
    before, after = (render_frame(person, r, np.array([0.3, 0.5]), SIZE) for r in (row, moved))
    np.testing.assert_allclose(after.kps - before.kps, np.tile([0.05 * SIZE, -0.02 * SIZE], (5, 1)), atol=1e-4)


def test_the_mouth_is_drawn_as_asked():
    person, motion = still(4)

    def measure(aperture: float, width: float) -> tuple[float, float, float]:
        frame = render_frame(person, motion.row(0), np.array([aperture, width]), SIZE)
        dark = (frame.pixels.sum(2) < 150) & (np.arange(SIZE)[:, None] > frame.kps[2, 1] + 4)
        return dark.sum(), np.ptp(frame.landmarks[INNER_LIPS, 1]), np.ptp(frame.landmarks[OUTER_LIPS, 0])

    areas, heights, _ = np.array([measure(a, 0.5) for a in np.linspace(0, 1, 6)]).T
    assert (np.diff(areas[1:]) > 0).all() and (np.diff(heights) > 1).all()
    _, _, widths = np.array([measure(0.3, w) for w in np.linspace(0, 1, 6)]).T
    assert (np.diff(widths) > 1).all()


def test_silence_closes_the_mouth():
    mouth = mouth_from_speech(np.zeros(RATE_HZ, np.float32), RATE_HZ, FPS, FPS)
    np.testing.assert_allclose(mouth, np.tile([0, 0.5], (FPS, 1)), atol=1e-3)


def test_loudness_of_the_recording_does_not_matter():
    speech = np.random.default_rng(0).normal(0, 0.1, RATE_HZ) * np.linspace(0, 1, RATE_HZ)
    loud, quiet = (mouth_from_speech(speech * gain, RATE_HZ, FPS, FPS) for gain in (1, 0.05))
    np.testing.assert_allclose(loud, quiet, atol=0.01)
    assert loud[-5:, 0].mean() > loud[5:10, 0].mean() + 0.3


def test_high_frequencies_make_it_wide():
    low, high = (mouth_from_speech(tone(1, hz), RATE_HZ, FPS, FPS)[10:20, 1].mean() for hz in (300, 3000))
    assert low < 0.3 and high > 0.7


@pytest.mark.parametrize("fps", [25, 30])
def test_mouth_opens_when_it_sounds(fps):
    """A sound from 0.5 s to 0.7 s is loudest in the frame that shows 0.6 s."""
    speech = np.zeros(2 * RATE_HZ, np.float32)
    speech[RATE_HZ // 2 : RATE_HZ * 7 // 10] = tone(0.2, 500)
    aperture = mouth_from_speech(speech, RATE_HZ, 2 * fps, fps)[:, 0]
    middle = np.average((np.arange(2 * fps) + 0.5) / fps, weights=aperture)
    assert abs(middle - 0.6) < 0.01
    assert aperture[: int(0.35 * fps)].max() < 0.05


def test_motion_is_smooth_and_amount_scales_it():
    motion = random_motion(np.random.default_rng(5), 300, FPS)
    assert np.abs(np.diff(motion.shift * SIZE, axis=0)).max() < 2.0 and np.ptp(motion.shift * SIZE, axis=0).min() > 2
    assert motion.lids.min() < 0.3 and np.median(motion.lids) == 1  # blinks
    still_motion = random_motion(np.random.default_rng(5), 300, FPS, amount=0)
    assert not still_motion.shift.any() and (still_motion.scale == 1).all()
