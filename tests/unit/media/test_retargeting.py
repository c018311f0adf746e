"""Six numbers of a pose, one face's motion on another, and smoothing; bars on drawn people, whose pose is known."""

import math

import numpy as np
import pytest
import torch

from scripts.demo.measure_retargeting import (
    RELEASED,
    add_noise,
    measure_errors,
    measure_jitter,
    measure_start,
    random_pair,
)
from vexpress.errors import InputError
from vexpress.media.retargeting import (
    apply_motion,
    choose_strategy,
    measure_pose,
    place_points,
    relative_motion,
    relative_retarget,
    rest_pose,
    smooth_kps,
    unwrap_roll,
)

FACE = torch.tensor([[200.0, 200.0], [312.0, 206.0], [262.0, 275.0]])
DEGREE = math.pi / 180


def posed(num_frames: int, seed: int = 0) -> torch.Tensor:
    """(f 6) random poses of one face, no two alike."""
    generator = torch.Generator().manual_seed(seed)
    pose = measure_pose(FACE).repeat(num_frames, 1)
    spread = torch.tensor([40, 30, 0.2, 20 * DEGREE, 30 * DEGREE, 0.1], dtype=torch.float64)
    return pose + spread * torch.randn(num_frames, 6, generator=generator, dtype=torch.float64).clamp(-2, 2)


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(3)
    return [random_pair(rng, num_frames=30) for _ in range(16)]


# Six numbers ----------------------------------------------------------------------------------------------------------
def test_six_numbers_say_all_of_three_points():
    torch.testing.assert_close(place_points(measure_pose(FACE)), FACE.double())
    pose = posed(50)
    torch.testing.assert_close(measure_pose(place_points(pose)), pose)


def test_numbers_change_with_what_they_are_named_for():
    pose = measure_pose(FACE)
    shifted, larger = measure_pose(FACE + torch.tensor([7.0, -3.0])), measure_pose(FACE * 2)
    torch.testing.assert_close(
        shifted - pose, torch.tensor([7, -3, 0, 0, 0, 0], dtype=torch.float64), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(larger[2:] - pose[2:], torch.tensor([math.log(2), 0, 0, 0], dtype=torch.float64))
    angle = torch.tensor(25 * DEGREE)
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
    rolled = measure_pose(FACE @ rotation.T)
    torch.testing.assert_close(rolled[2:] - pose[2:], torch.tensor([0, angle, 0, 0]).double(), atol=1e-6, rtol=0)
    mirrored = measure_pose((FACE * torch.tensor([-1.0, 1.0]))[[1, 0, 2]])
    torch.testing.assert_close(mirrored[[3, 4]], -pose[[3, 4]])


def test_points_on_one_another_are_an_input_error():
    with pytest.raises(InputError, match="no size"):
        measure_pose(torch.full((4, 3, 2), 7.0))
    with pytest.raises(InputError, match="no size"):
        relative_retarget(FACE.expand(20, 3, 2), torch.full((3, 2), 7.0))


# Relative motion ------------------------------------------------------------------------------------------------------
def test_a_face_on_itself_stays_as_it_is():
    kps = place_points(posed(21))
    reference = place_points(rest_pose(measure_pose(kps)))
    torch.testing.assert_close(relative_retarget(kps, reference, smoothing=0), kps)


def test_a_still_driver_gives_the_portrait_whatever_its_own_pose():
    driver = place_points(posed(1, seed=4)).expand(30, 3, 2).float()
    made = relative_retarget(driver, FACE)
    torch.testing.assert_close(made, FACE.expand(30, 3, 2), atol=1e-3, rtol=0)
    assert made.dtype == torch.float32


def test_place_size_and_roll_of_the_driver_do_not_matter():
    pose = posed(40)
    expected = relative_retarget(place_points(pose), FACE, smoothing=0)
    other = apply_motion(
        measure_pose(FACE * 0.4 + 30) + torch.tensor([0, 0, 0, 100 * DEGREE, 0, 0]),
        relative_motion(pose, rest_pose(pose)),
    )
    torch.testing.assert_close(relative_retarget(place_points(other), FACE, smoothing=0), expected)


def test_rest_is_not_decided_by_the_first_frames():
    pose = measure_pose(FACE).repeat(50, 1)
    pose[:12, 4] += 0.5  # begins with the head turned away
    made = relative_retarget(place_points(pose), FACE, smoothing=0)
    torch.testing.assert_close(made[20:], FACE.double().expand(30, 3, 2))


def test_roll_runs_on_beyond_half_a_turn():
    pose = posed(1).repeat(40, 1)
    pose[:, 3] = torch.linspace(170, 190, 40) * DEGREE
    measured = measure_pose(place_points(pose))
    assert measured[:, 3].diff().abs().max() > 6
    torch.testing.assert_close(unwrap_roll(measured)[:, 3].diff(), pose[:, 3].diff())
    made = measure_pose(relative_retarget(place_points(pose), FACE, smoothing=0))
    assert (made[:, 3] - measure_pose(FACE)[3]).abs().max() < 11 * DEGREE


def test_a_head_is_not_turned_beyond_profile():
    motion = torch.zeros(3, 6, dtype=torch.float64)
    motion[:, 4] = torch.tensor([-3.0, 0, 3])
    pose = apply_motion(measure_pose(FACE), motion)
    assert pose[:, 4].abs().max() < math.pi / 2
    kps = place_points(pose)
    assert (kps[:, 1, 0] > kps[:, 0, 0]).all()


# Bars -----------------------------------------------------------------------------------------------------------------
def test_error_on_drawn_people(pairs):
    errors = measure_errors(pairs)
    best = min(errors[name] for name in RELEASED)
    assert errors["relative_retarget"] <= 1.0 and errors["relative_retarget"] <= best / 3


def test_error_on_drawn_people_with_a_detector_s_noise(pairs):
    errors = measure_errors(pairs, noise_px=0.5)
    best = min(errors[name] for name in RELEASED)
    assert errors["relative_retarget"] <= 1.0 and errors["relative_retarget"] <= best / 3


def test_jitter_of_a_still_head():
    assert measure_jitter(num_clips=8) <= 0.15


def test_no_jump_at_the_start(pairs):
    assert measure_start(pairs) <= 0.5


# Smoothing ------------------------------------------------------------------------------------------------------------
def test_clean_keypoints_stay_as_they_are(pairs):
    for pair in pairs[:4]:
        assert (smooth_kps(pair.driving) - pair.driving).abs().max() < 0.05


def test_noise_goes_and_motion_stays():
    rng = np.random.default_rng(5)
    for i in range(3):
        true = random_pair(rng, num_frames=90).true
        smoothed = smooth_kps(add_noise(true, i))
        assert (smoothed - true).square().mean().sqrt() < 0.6 * 0.5
        acceleration, expected = (kps.diff(n=2, dim=0).square().mean().sqrt() for kps in (smoothed, true))
        assert 0.7 < acceleration / expected < 1.3


def test_a_quick_move_is_not_slowed_down():
    kps = FACE.repeat(60, 1, 1)
    kps[30:] += 40
    noisy = add_noise(kps, 0, 0.3)
    assert (smooth_kps(noisy)[[28, 32]] - kps[[28, 32]]).abs().max() < 3


def test_strength_zero_and_short_clips_change_nothing():
    kps = add_noise(FACE.repeat(30, 1, 1), 0)
    assert torch.equal(smooth_kps(kps, 0), kps)
    assert torch.equal(smooth_kps(kps[:5]), kps[:5])
    step = [smooth_kps(kps, strength).diff(dim=0).square().mean() for strength in (0, 0.5, 1, 2)]
    assert sorted(step, reverse=True) == step


# Choosing -------------------------------------------------------------------------------------------------------------
def test_auto_keeps_a_clip_s_own_frame_and_carries_over_to_others():
    kps = place_points(posed(20)).float()
    strategy, why = choose_strategy(kps, kps[7] + 1)
    assert strategy == "no_retarget" and "%" in why
    assert choose_strategy(kps, FACE + 200)[0] == "relative_retarget"
    assert choose_strategy(kps, FACE * 1.5)[0] == "relative_retarget"
