"""Cutting in time and space."""

import numpy as np
import pytest

from vexpress.media.faces import head_and_shoulders_box
from vexpress.prepare.pieces import compute_crop, crop_frame, split_into_pieces

HERE, AWAY = [10, 10, 50, 60], [200, 10, 240, 60]


def frames_of(*groups):
    """(count, box, box, ...) per group -> per frame the boxes (n 4)."""
    return [np.array(boxes, np.float32) for count, *boxes in groups for _ in range(count)]


def cuts_of(pieces):
    return [(piece.start, piece.stop, len(piece.boxes), piece.num_bad) for piece in pieces]


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


def test_a_cut_to_another_face_at_the_same_place_cuts():
    pieces = split_into_pieces(frames_of((30, HERE)), max_gap=2, max_frames=100, cuts=[12, 20])
    assert cuts_of(pieces) == [(0, 12, 12, 0), (12, 20, 8, 0), (20, 30, 10, 0)]
    assert [piece.is_cut for piece in pieces] == [True] * 3
    [whole] = split_into_pieces(frames_of((30, HERE)), max_gap=2, max_frames=100)
    assert not whole.is_cut
    # A cut in a gap is no reason to go on in the next shot.
    pieces = split_into_pieces(frames_of((5, HERE), (2,), (5, HERE)), max_gap=2, max_frames=100, cuts=[6])
    assert [(piece.start, piece.stop) for piece in pieces] == [(0, 5), (5, 7), (7, 12)]


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
