"""The head-motion network without training: splines, whitening, pieces that continue each other, streams."""

import math

import pytest
import torch

from vexpress.models.head_motion import (
    HeadMotion,
    fit_points,
    motion_from_speech,
    num_points_of,
    spline_matrix,
    stream_points,
)

FPS = 30.0
STATES_HZ = 50


def smooth_walks(num_clips: int, num_points: int, seed: int = 0) -> torch.Tensor:
    """(n t 6) smooth random curves."""
    noise = torch.randn(num_clips, 6, num_points + 20, generator=torch.Generator().manual_seed(seed)).double()
    kernel = torch.exp(-0.5 * (torch.arange(-10, 11) / 3.0) ** 2).double()
    smooth = torch.nn.functional.conv1d(noise.flatten(0, 1)[:, None], (kernel / kernel.norm())[None, None])
    return 0.05 * smooth[:, 0].unflatten(0, (num_clips, 6)).mT.float()


@pytest.fixture(scope="module")
def network() -> HeadMotion:
    torch.manual_seed(0)
    network = HeadMotion(audio_width=8, width=16, num_audio_blocks=1, num_blocks=2).eval()
    network.set_statistics(smooth_walks(2000, network.config.piece_points))
    torch.nn.init.normal_(network.out.weight, std=0.02)
    return network


def states(seconds: float, seed: int = 0) -> torch.Tensor:
    return torch.randn(round(seconds * STATES_HZ), 8, generator=torch.Generator().manual_seed(seed))


# Splines --------------------------------------------------------------------------------------------------------------
def test_spline_weights_sum_to_one_and_are_smooth():
    times = torch.linspace(0, 3, 301)
    weights = spline_matrix(times, num_points_of(3, 10), 10)
    torch.testing.assert_close(weights.sum(1), torch.ones(301, dtype=torch.float64))
    assert weights.diff(n=3, dim=0).abs().max() < 0.02


def test_fitted_splines_are_the_motion():
    time = (torch.arange(240) + 0.5) / FPS
    motion = torch.stack([torch.sin(2 * math.pi * f * time) for f in (0.1, 0.3, 0.7, 1, 2, 3)], 1)
    points = fit_points(motion, FPS, 10)
    assert len(points) == num_points_of(8, 10)
    error = (spline_matrix(time, len(points), 10) @ points - motion).abs().amax(0)
    assert error[:5].max() < 0.01 and error[5] < 0.06  # 3 Hz is near to what 10 points a second can hold


# Whitening ------------------------------------------------------------------------------------------------------------
def test_whitening_makes_unit_noise_and_is_turned_around(network):
    pieces = smooth_walks(2000, network.config.piece_points, seed=1)
    whitened = network.whiten(pieces)
    assert 0.95 < whitened[:, :4].std() < 1.05 and whitened.mean().abs() < 0.05
    assert 0.7 < whitened.std() < 1.05  # of what can be foretold, less than what keeps the factors regular is left
    torch.testing.assert_close(network.unwhiten(whitened), pieces, atol=1e-4, rtol=0)


def test_the_first_points_alone_decide_the_first_whitened_values(network):
    piece = smooth_walks(3, network.config.piece_points)
    torch.testing.assert_close(network.whiten(piece[:, :8]), network.whiten(piece)[:, :8])


def test_untrained_noise_has_the_data_s_spectrum(network):
    """White noise stands for motion with the right speeds, and goes on across pieces."""
    silent = HeadMotion(**{k: v for k, v in network.config.items() if not k.startswith("_")}).eval()
    silent.load_state_dict(network.state_dict())
    torch.nn.init.zeros_(silent.out.weight)
    torch.nn.init.zeros_(silent.out.bias)
    made = torch.cat(list(stream_points(silent, states(300), 300, seed=0, num_steps=1)))
    data = smooth_walks(200, 200, seed=2)
    for order in (0, 1, 2):
        ratio = made.diff(n=order, dim=0).std() / data.diff(n=order, dim=1).std() if order else made.std() / data.std()
        assert 0.85 < ratio < 1.15
    at_joints = made.diff(n=2, dim=0)[24 - 2 :: 16].abs().mean()
    assert at_joints < 1.3 * made.diff(n=2, dim=0).abs().mean()


# Streams --------------------------------------------------------------------------------------------------------------
def test_same_seed_same_motion(network):
    one, again, other = (motion_from_speech(network, states(4), 120, FPS, seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert (one - other).abs().max() > 0.01


def test_a_longer_clip_begins_as_a_shorter_one(network):
    long = states(20)
    pieces = list(stream_points(network, long, 20, seed=3))
    shorter = list(stream_points(network, long[: 10 * STATES_HZ], 10, seed=3))
    config = network.config
    made = 0
    for one, other in zip(pieces, shorter):
        made += len(one)
        if made + config.context_points > 10 * config.points_per_second:  # it needs speech that is not there yet
            break
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    assert made > 3 * config.piece_points


def test_speech_changes_the_motion_and_only_near_it(network):
    one, other = states(20), states(20)
    other[15 * STATES_HZ :] = states(5, seed=1)
    made, changed = (motion_from_speech(network, s, 600, FPS, seed=0) for s in (one, other))
    assert torch.equal(made[: 10 * 30], changed[: 10 * 30])
    assert (made[16 * 30 :] - changed[16 * 30 :]).abs().max() > 1e-4


@pytest.mark.parametrize("num_frames", [1, 2, 31, 1000])
@pytest.mark.parametrize("fps", [12.5, 30.0, 60.0])
def test_any_length_and_frame_rate(network, num_frames, fps):
    motion = motion_from_speech(network, states(max(0.1, num_frames / fps)), num_frames, fps, seed=0)
    assert motion.shape == (num_frames, 6) and motion.isfinite().all()


def test_it_can_be_ended_between_pieces(network):
    calls = []
    motion_from_speech(network, states(20), 600, FPS, 0, check=lambda: calls.append(1))
    assert len(calls) == len(list(stream_points(network, states(20), 20, 0))) > 1


def test_strength_scales_the_motion(network):
    full, half, none = (motion_from_speech(network, states(4), 120, FPS, 0, strength) for strength in (1, 0.5, 0))
    torch.testing.assert_close(half, full / 2)
    assert not none.any()
    assert (full.abs() <= 5 * network.deviations).all()


def test_frame_rate_does_not_change_the_motion(network):
    slow, fast = (motion_from_speech(network, states(4), round(4 * fps), fps, 0) for fps in (20, 60))
    torch.testing.assert_close(slow, fast[1::3], atol=1e-6, rtol=0)


def test_audio_steps_lie_around_their_points(network):
    ramp = torch.linspace(0, 10, 500)[:, None].expand(-1, 8) + 0.01  # the time of each state, about
    steps = network.steps_around(ramp, 10, first=11, num_points=3)
    assert steps.shape == (3, network.config.steps_per_point, 8)
    torch.testing.assert_close(steps[:, :, 0].mean(1), torch.tensor([1.0, 1.1, 1.2]), atol=0.02, rtol=0)
    beyond = network.steps_around(ramp, 10, first=-50, num_points=10)
    assert (beyond == ramp[0, 0]).all()
