"""Setting faces into pictures: nothing outside of the mask, colours that match, and masks that cover what they must."""

import numpy as np
import pytest
import torch

from scripts.demo.drawn_faces import render_frame
from scripts.demo.drawn_people import random_motion, random_person
from vexpress.media.compositing import (
    HEAD,
    SPEECH,
    Box,
    Compositor,
    PasteBack,
    border_mask,
    fitted,
    region_mask,
    union_mask,
)

KPS = np.array([[60.0, 62.0], [90.0, 60.0], [75.0, 80.0]])
BOX = Box(30, 20, 90, 90)


def picture(seed: int = 0, height: int = 140, width: int = 150) -> np.ndarray:
    return np.random.default_rng(seed).integers(30, 220, (height, width, 3), np.uint8)


def cut(whole: np.ndarray, box: Box = BOX) -> np.ndarray:
    return whole[box.top : box.top + box.height, box.left : box.left + box.width]


# Masks ----------------------------------------------------------------------------------------------------------------
def test_a_mask_covers_the_drawn_face_and_ends_within_its_box():
    rng = np.random.default_rng(1)
    for _ in range(10):
        motion = random_motion(rng, 1, 30.0).row(0)
        frame = render_frame(random_person(rng), motion, np.array([rng.uniform(), 0.5]), 200)
        box = Box(0, 0, 200, 200)
        mask = region_mask(frame.kps[:3], SPEECH, box)
        assert mask.dtype == np.float32 and mask.max() == 1
        assert max(mask[0].max(), mask[-1].max(), mask[:, 0].max(), mask[:, -1].max()) == 0
        mouth, chin = frame.landmarks[52:72], frame.landmarks[16]
        for x, y in [*frame.kps[2:], *mouth]:
            assert mask[round(float(y)), round(float(x))] > 0.9
        for x, y in [*frame.landmarks[33:43], *frame.landmarks[87:97]]:  # the eyes
            assert mask[round(float(y)), round(float(x))] < 0.1
        assert mask[round(float(chin[1])), round(float(chin[0]))] > 0.8
        head = region_mask(frame.kps[:3], HEAD, box)
        assert head.mean() > 2 * mask.mean()


def test_a_mask_follows_the_face():
    moved = region_mask(KPS + [10, 4], SPEECH, Box(40, 24, 90, 90))
    np.testing.assert_allclose(region_mask(KPS, SPEECH, BOX), moved, atol=1e-6)
    larger = region_mask(KPS * 4, SPEECH, Box(60, 0, 480, 560))  # beyond the grid on which masks are computed
    np.testing.assert_allclose(larger[2::4, 2::4], region_mask(KPS, SPEECH, Box(15, 0, 120, 140)), atol=0.05)


def test_the_union_of_masks_holds_every_pose():
    poses = np.stack([KPS + [3.0 * i, 0] for i in range(5)])
    union = union_mask(poses, SPEECH, BOX)
    for points in poses:
        assert (union >= region_mask(points, SPEECH, BOX) - 1e-3).all()
    assert union.mean() < 1.6 * region_mask(KPS, SPEECH, BOX).mean()


def test_points_go_to_the_whole_picture_and_back():
    size = (64, 32)
    np.testing.assert_allclose(BOX.to_whole(np.array([[64.0, 32.0]]), size), [[120, 110]])
    np.testing.assert_allclose(BOX.to_generated(BOX.to_whole(KPS, size), size), KPS)


# Composition ----------------------------------------------------------------------------------------------------------
def test_outside_of_the_mask_every_pixel_stays():
    whole, mask = picture(), region_mask(KPS, SPEECH, BOX)
    before = whole.copy()
    result = Compositor().compose(whole, picture(1, 64, 64), mask, BOX)
    assert np.array_equal(whole, before)
    outside = np.ones(whole.shape[:2], bool)
    cut(outside)[mask > 0] = False
    assert np.array_equal(result[outside], whole[outside])
    inside = np.zeros_like(outside)
    cut(inside)[mask > 0.9] = True
    assert (result[inside] != whole[inside]).any(1).mean() > 0.9


@pytest.mark.parametrize("corner", [(-40, -30), (100, 90), (-300, 0), (20, 400)])
def test_a_box_may_reach_out_of_the_picture(corner):
    whole, box = picture(), Box(*corner, 90, 90)
    result = Compositor().compose(whole, picture(1, 64, 64), border_mask(box), box)
    x1, y1 = max(0, corner[0]), max(0, corner[1])
    x2, y2 = corner[0] + 90, corner[1] + 90
    outside = np.ones(whole.shape[:2], bool)
    outside[y1 : max(0, y2), x1 : max(0, x2)] = False
    assert np.array_equal(result[outside], whole[outside])
    assert result.shape == whole.shape


def smooth_picture() -> np.ndarray:
    x, y = np.meshgrid(np.arange(150), np.arange(140))
    return np.stack([90 + 40 * np.sin(x / 20), 100 + 30 * np.cos(y / 15), 120 + 0.3 * x], 2).astype(np.uint8)


def test_colours_match_at_the_seam():
    whole, mask = smooth_picture(), region_mask(KPS, SPEECH, BOX)
    off = np.clip(cut(whole).astype(int) + [12, -9, 5], 0, 255).astype(np.uint8)
    result = Compositor().compose(whole, off, mask, BOX)
    assert np.abs(result.astype(int) - whole).max() <= 2
    plain = cut(whole) + mask[..., None] * (off.astype(float) - cut(whole))
    assert np.abs(plain - cut(whole)).max() >= 11


def test_another_content_is_not_taken_for_a_colour():
    """A mouth that is open in one picture and shut in the other, a lock of hair across the rim."""
    whole, mask = smooth_picture(), region_mask(KPS, SPEECH, BOX)
    other = cut(whole).copy()
    other[60:75, 35:55] = (60, 10, 20)  # the mouth
    other[:, 20:26] = 10  # hair, through the rim
    result = cut(Compositor().compose(whole, other, mask, BOX)).astype(int)
    plain = mask > 0.99
    plain[60:75, 35:55] = plain[:, 15:31] = False
    assert np.abs(result - cut(whole))[plain].max() <= 3
    assert np.abs(result[62:73, 37:53] - [60, 10, 20])[mask[62:73, 37:53] > 0.99].max() <= 3


def test_a_correction_does_not_jump_from_frame_to_frame():
    whole, mask, compositor = smooth_picture(), region_mask(KPS, SPEECH, BOX), Compositor()
    means = []
    for shift in (10, 10, -10, -10, -10):
        off = np.clip(cut(whole).astype(int) + shift, 0, 255).astype(np.uint8)
        means.append(cut(compositor.compose(whole, off, mask, BOX)).mean())
    assert abs(means[1] - means[0]) < 0.2 and 0.5 < abs(means[2] - means[1]) < 10


def test_fractions_of_a_pixel_shift_and_whole_ones_do_not_blur():
    small = smooth_picture()[:45, :45]
    assert fitted(small, Box(7, 9, 45, 45)) is small
    assert fitted(small, Box(0, 0, 90, 20)).shape == (20, 90, 3)
    shifted = fitted(small, Box(0.5, 0, 45, 45)).astype(float)
    between = (small[:, :-1].astype(float) + small[:, 1:]) / 2
    assert np.abs(shifted[2:-2, 3:-2] - between[2:-2, 2:-2]).max() < 1.5


# A picture's frames ---------------------------------------------------------------------------------------------------
def test_frames_come_back_into_the_picture_one_at_a_time():
    paste = PasteBack(picture(0, 141, 151), BOX)
    assert paste.size == (150, 140)
    made = []

    def frames():
        for number in range(3):
            made.append(number)
            yield picture(number, 48, 48)

    kps = torch.from_numpy(np.stack([KPS, KPS + 1, KPS + 2])).float()
    stream = paste.compose(frames(), torch.from_numpy(KPS).float(), kps)
    first = next(stream)
    assert made == [0] and first.shape == (140, 150, 3)
    still = np.stack([first, *stream])
    outside = np.ones((140, 150), bool)
    cut(outside)[:] = False
    assert (still[:, outside] == paste.picture[:140, :150][outside]).all()
    moved = paste.kps(torch.tensor([[24.0, 24.0]]), (48, 48))
    assert torch.allclose(moved, torch.tensor([[75.0, 65.0]]))
