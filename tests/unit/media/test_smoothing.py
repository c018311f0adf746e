"""Denoising over time: what is still is averaged, what moves is left alone."""

import numpy as np
import pytest
import torch

from vexpress.media.smoothing import RADIUS, stream_denoise


def denoise(video: torch.Tensor, threshold: float) -> torch.Tensor:
    return torch.stack(list(stream_denoise(video.unbind(0), threshold)))


@pytest.mark.parametrize("num_frames", [1, 2, 3, 8])
def test_it_averages_what_is_alike_and_is_two_frames_behind(num_frames):
    video = torch.rand(num_frames, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    num_taken = 0

    def frames():
        nonlocal num_taken
        for frame in video:
            num_taken += 1
            yield frame

    threshold, out = 0.4, []
    for index, frame in enumerate(stream_denoise(frames(), threshold)):
        assert num_taken == min(num_frames, index + 1 + RADIUS)
        out.append(frame.numpy())
    pixels = video.numpy()
    for f, y, x in np.ndindex(num_frames, 5, 4):
        around = pixels[max(0, f - RADIUS) : f + RADIUS + 1, :, y, x]
        weights = np.maximum(1 - np.abs(around - pixels[f, :, y, x]).max(axis=1) / threshold, 0)
        np.testing.assert_allclose(out[f][:, y, x], np.average(around, axis=0, weights=weights), atol=1e-6)


def test_still_pixels_get_quiet_and_moving_ones_keep_their_values():
    generator = torch.Generator().manual_seed(0)
    video = 0.5 + 0.01 * torch.randn(40, 3, 8, 8, generator=generator)
    video[:, :, :, :4] = torch.arange(40).reshape(-1, 1, 1, 1) % 2  # jumps by 1 each frame
    made = denoise(video, 0.1)
    assert torch.equal(made[:, :, :, :4], video[:, :, :, :4])
    assert made[:, :, :, 4:].diff(dim=0).abs().mean() < 0.4 * video[:, :, :, 4:].diff(dim=0).abs().mean()


def test_one_channel_that_moves_keeps_the_pixel():
    video = torch.zeros(5, 3, 1, 1)
    video[2, 0] = 1.0
    video[2, 1] = 0.05
    assert torch.equal(denoise(video, 0.1), video)


def test_no_frames_stay_no_frames():
    assert list(stream_denoise([], 0.1)) == []
