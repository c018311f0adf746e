import cv2
import numpy as np
import pytest
import torch

from tests.clips import make_face_info
from tests.tiny import recorded
from vexpress.data.transforms import (
    Geometry,
    central_geometry,
    lip_corners,
    lip_mask_box,
    random_geometry,
    render_lip_mask,
    scaled_box,
    transform_frames,
    transform_kps,
    transform_points,
)
from vexpress.media.keypoints import render_v_kps

SIZE = (96, 128)  # width, height


def drawn(seed: int, frame_size=(200, 160), size=SIZE, crop_ratio=(0.6, 1.5), flip_rate=0.5) -> Geometry:
    return random_geometry(np.random.default_rng(seed), frame_size, size, crop_ratio, flip_rate)


# Crop and flip --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("frame_size", [(200, 160), (160, 200), (128, 128)])
def test_crop_is_the_largest_of_its_ratio_and_lies_anywhere(frame_size):
    boxes = [drawn(seed, frame_size, crop_ratio=(0.8, 0.9)).box for seed in range(300)]
    for x1, y1, x2, y2 in boxes:
        assert 0 <= x1 < x2 <= frame_size[0]
        assert 0 <= y1 < y2 <= frame_size[1]
        assert x2 - x1 == frame_size[0] or y2 - y1 == frame_size[1]
        assert 0.79 < (x2 - x1) / (y2 - y1) < 0.91
    boxes = np.array(boxes)
    axis = int((boxes[:, 2] - boxes[:, 0] == frame_size[0]).all())  # in which there is room
    before, after = boxes[:, axis], frame_size[axis] - boxes[:, 2 + axis]
    assert before.min() == after.min() == 0  # both borders are reached
    assert before.mean() == pytest.approx(after.mean(), rel=0.15)


def test_ratio_is_log_uniform():
    x1, y1, x2, y2 = np.transpose([drawn(seed, (2000, 2000), crop_ratio=(0.5, 2)).box for seed in range(500)])
    ratios = (x2 - x1) / (y2 - y1)
    assert np.mean(ratios < 1) == pytest.approx(0.5, abs=0.06)
    assert 0.5 <= min(ratios) < 0.51
    assert 1.95 < max(ratios) <= 2


def test_ratio_one_keeps_a_square_frame_whole():
    assert drawn(0, (130, 130), crop_ratio=(1, 1)).box == (0, 0, 130, 130)


@pytest.mark.parametrize(("flip_rate", "least", "most"), [(0, 0, 0), (1, 200, 200), (0.3, 40, 80)])
def test_flip_rate(flip_rate, least, most):
    assert least <= sum(drawn(seed, flip_rate=flip_rate).flip for seed in range(200)) <= most


def test_central_geometry_is_the_middle_square():
    assert central_geometry((200, 160), SIZE, flip=True) == Geometry((20, 0, 180, 160), *SIZE, True)
    assert central_geometry((160, 200), SIZE, flip=False) == Geometry((0, 20, 160, 180), *SIZE, False)


@pytest.mark.parametrize("seed", range(12))
def test_pixels_and_points_move_alike(seed):
    geometry = drawn(seed, crop_ratio=(0.9, 1.3))  # the points stay in the crop
    points = np.array([[70.3, 60.8], [110.0, 61.5], [90.5, 100.25], [120.9, 120.1]])
    frames = np.zeros((4, 160, 200, 3), np.uint8)
    rows, columns = np.mgrid[:160, :200] + 0.5  # centres of the pixels
    for frame, (x, y) in zip(frames, points):
        frame[:] = np.round(255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 3**2)))[..., None]
    moved = transform_frames(frames, geometry)
    assert moved.shape == (4, 3, SIZE[1], SIZE[0])
    assert moved.dtype == torch.uint8
    weights = moved[:, 0].numpy() / moved[:, 0].sum((1, 2)).numpy()[:, None, None]
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]] + 0.5
    found = np.stack([(weights * columns).sum((1, 2)), (weights * rows).sum((1, 2))], axis=1)
    np.testing.assert_allclose(found, transform_points(points, geometry), atol=0.15)


def test_unchanged_geometry_changes_nothing():
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 24, 3)).astype(np.uint8)
    same = Geometry((0, 0, 24, 32), 24, 32, False)
    np.testing.assert_array_equal(transform_frames(frames, same).permute(0, 2, 3, 1), frames)
    points = np.array([[1.5, 2.25]], np.float32)
    np.testing.assert_array_equal(transform_points(points, same), points)


def test_reducing_does_not_alias():
    stripes = np.zeros((1, 256, 256, 3), np.uint8)
    stripes[:, :, ::2] = 255
    reduced = transform_frames(stripes, Geometry((0, 0, 256, 256), 100, 100, False)).float()
    assert reduced.std() < 8  # grey; without antialiasing 60 and more


# Mirrored keypoints ---------------------------------------------------------------------------------------------------
def test_mirrored_kps_keep_their_sides_and_their_image():
    """The mirrored image with the eyes' channels swapped, up to a pixel of outline; at the nose, one limb is on top."""
    rng = np.random.default_rng(0)
    geometry = Geometry((0, 0, 256, 256), 256, 256, True)
    for kps in make_face_info(40, size=256).kps[:, :3] + rng.uniform(-8, 8, (40, 3, 2)):
        flipped = transform_kps(kps, geometry)
        assert flipped[0, 0] < flipped[1, 0]  # the left eye is still the viewer's left one
        np.testing.assert_allclose(transform_kps(flipped, geometry), kps, atol=1e-4)
        image = render_v_kps(flipped, 256, 256)
        expected = np.ascontiguousarray(render_v_kps(kps, 256, 256)[:, ::-1][..., [1, 0, 2]])
        assert image[tuple(flipped[0].astype(int)[::-1])][0] == 255
        for drawing in (image, expected):
            cv2.circle(drawing, flipped[2].astype(int).tolist(), 12, (0, 0, 0), -1)
        neighbours = np.ones((3, 3), np.uint8)
        assert expected.any(axis=(0, 1)).tolist() == [True, True, False]
        assert (image <= cv2.dilate(expected, neighbours)).all()
        assert (image >= cv2.erode(expected, neighbours)).all()


# Lip mask -------------------------------------------------------------------------------------------------------------
def test_lip_box_as_recorded():
    case = recorded("dataset")
    box = lip_mask_box(case["landmark_2d_106"], float(case["lip_mask_scale"]))
    assert box.tolist() == case["lip_mask_box_xyxy"].tolist()
    stacked = lip_mask_box(np.stack([case["landmark_2d_106"]] * 2), float(case["lip_mask_scale"]))
    assert stacked.tolist() == [box.tolist()] * 2


def test_lip_box_moves_with_the_picture():
    landmarks = make_face_info(5, size=512).landmark_2d_106
    for seed in range(8):
        geometry = drawn(seed, (512, 512), (512, 512), (0.9, 1))
        of_points = lip_mask_box(transform_points(landmarks, geometry), 2.0)
        of_corners = scaled_box(transform_points(lip_corners(landmarks), geometry), 2.0)
        np.testing.assert_array_equal(of_points, of_corners)


@pytest.mark.parametrize("scale", [1.0, 2.0, 3.0])
def test_mask_covers_the_lips_and_little_more_than_the_box(scale):
    for landmarks in make_face_info(20, size=512).landmark_2d_106:
        box = lip_mask_box(landmarks, scale)
        pixels = render_lip_mask(box, 512, 512, 8).repeat_interleave(8, 0).repeat_interleave(8, 1)
        x, y = landmarks[52:72].astype(int).T
        assert pixels[y, x].all()
        rows, columns = pixels.nonzero().T
        left, top, right, bottom = box.tolist()
        assert 0 <= left - columns.min() < 8 and 0 <= columns.max() - right < 8
        assert 0 <= top - rows.min() < 8 and 0 <= rows.max() - bottom < 8
        assert len(rows) == (columns.max() - columns.min() + 1) * (rows.max() - rows.min() + 1)


def test_mask_of_tiny_lips_is_not_empty():
    assert render_lip_mask(np.array([33, 41, 33, 41]), 64, 64, 8).nonzero().tolist() == [[5, 4]]


@pytest.mark.parametrize(
    ("box", "num_cells"),
    [
        ((-20, -20, 0, 0), 1),
        ((63, 0, 90, 7), 1),
        ((-20, 8, 100, 15), 8),
        ((-20, 0, -1, 63), 0),
        ((64, 0, 90, 63), 0),
        ((0, 64, 63, 90), 0),
    ],
)
def test_mask_at_the_border_of_the_frame(box, num_cells):
    mask = render_lip_mask(np.array(box), 64, 64, 8)
    assert (mask.shape, mask.dtype) == ((8, 8), torch.float32)
    assert mask.sum() == num_cells
