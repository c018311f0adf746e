"""What frames are like: known answers for stillness, turns, covered faces, blur and another person."""

import cv2
import numpy as np
import pytest

from vexpress.media.faces import Face
from vexpress.prepare import pictures
from vexpress.prepare.pictures import FrameLook, align_face, compute_blur

KPS = np.array([(40, 50), (80, 50), (60, 72), (45, 95), (75, 95)], np.float32)


def textured(seed: int = 0, side: int = 128, sizes: tuple[int, ...] = (4, 16, 64)) -> np.ndarray:
    """(side side 3) uint8 with detail of these sizes: cells per side."""
    rng = np.random.default_rng(seed)
    layers = [cv2.resize(rng.uniform(0, 255, (n, n, 3)), (side, side), interpolation=cv2.INTER_CUBIC) for n in sizes]
    return np.clip(np.mean(layers, 0), 0, 255).astype(np.uint8)


def test_the_longest_still_stretch_is_counted():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (30, 64, 64), np.uint8)
    frames[8:20] = frames[8]
    frames[8:20, :8, :8] += rng.integers(0, 2, (12, 8, 8), np.uint8)  # as coding changes it
    assert pictures.longest_still(frames) == 11
    assert pictures.longest_still(frames[:8]) == 0


def test_slow_motion_is_no_standstill():
    row = np.arange(64)
    frames = np.stack([(127 + 100 * np.sin((row + i / 2) / 9))[None].repeat(64, 0) for i in range(40)]).astype(np.uint8)
    assert pictures.longest_still(frames) < 5


@pytest.mark.parametrize("degrees", [0, 20, -45])
def test_a_turn_is_told_by_the_nose(degrees):
    """A head whose nose is EVEN_NOSE_DEPTH eye distances before the eyes, in parallel projection."""
    angle = np.radians(degrees)
    points = np.array([(-0.5, 0, 0), (0.5, 0, 0), (0, 0.5, pictures.EVEN_NOSE_DEPTH), (-0.3, 1, 0), (0.3, 1, 0)])
    turned = points.copy()
    turned[:, 0] = points[:, 0] * np.cos(angle) + points[:, 2] * np.sin(angle)
    tilt = np.array([[np.cos(0.3), np.sin(0.3)], [-np.sin(0.3), np.cos(0.3)]])
    kps = np.stack([40 * turned[:, :2] @ tilt + 60] * 9)
    assert pictures.largest_turn(kps) == pytest.approx(abs(degrees), abs=0.1)
    kps[4] += np.random.default_rng(0).normal(0, 30, (5, 2))  # one frame's glitch
    assert pictures.largest_turn(kps) == pytest.approx(abs(degrees), abs=0.1)


def test_what_passes_before_the_face_is_seen_and_a_mouth_is_not():
    rng = np.random.default_rng(0)
    faces = np.full((60, 32, 32, 3), 150, np.uint8) + rng.integers(0, 6, (60, 32, 32, 3), np.uint8)
    for index in range(60):
        faces[index, 25 : 26 + index % 5, 12:20] = 60  # a mouth that opens and closes
    faces[40] //= 2  # the light flickers
    assert pictures.measure_occlusion(faces) < 0.1
    faces[20:30, 14:30, 8:28] = (40, 90, 60)
    assert pictures.measure_occlusion(faces) > 0.4


def test_blur_grows_with_blur_and_not_with_the_size_of_the_picture():
    image, box = textured(), np.array([10, 10, 118, 118], np.float32)
    blurs = [compute_blur(cv2.GaussianBlur(image, (0, 0), width) if width else image, box) for width in (0, 1, 2, 4)]
    assert blurs == sorted(blurs) and blurs[-1] > blurs[0] + 0.2
    larger = cv2.resize(image, (256, 256), interpolation=cv2.INTER_CUBIC)
    assert compute_blur(larger, 2 * box) == pytest.approx(blurs[0], abs=0.05)
    assert compute_blur(np.zeros_like(image), box) == 1
    assert compute_blur(image, np.array([-500, -500, -400, -400])) >= 0  # outside


def test_a_face_is_aligned_whatever_its_place_size_and_tilt():
    image = textured(sizes=(4, 12))
    matrix = cv2.getRotationMatrix2D((64, 64), 25, 3.0)
    matrix[:, 2] += 150
    moved = cv2.warpAffine(image, matrix, (500, 500), flags=cv2.INTER_CUBIC)
    kps = np.concatenate([KPS, np.ones((5, 1))], 1) @ matrix.T
    difference = np.abs(align_face(image, KPS).astype(int) - align_face(moved, kps))
    assert difference.mean() < 12


def test_another_person_is_unlike_the_first():
    one, other = np.eye(8)[:2]
    same = np.stack([one + 0.1 * np.random.default_rng(i).normal(size=8) for i in range(40)])
    assert pictures.lowest_similarity(same) > 0.8
    changed = same.copy()
    changed[28:] += other * 3 - one
    assert pictures.lowest_similarity(changed) < 0.3


def test_frames_without_a_face_are_looked_at_too():
    look = FrameLook()
    face = Face(np.array([20, 20, 100, 110], np.float32), KPS, 1.0)
    for index in range(12):
        look.add(textured(index), None if index == 3 else face, textured(index), (0, 0, 1.0))
    assert len(look.thumbnails) == 12 and look.faces[3] is None and len(look.blur) == 3
