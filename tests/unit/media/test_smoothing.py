"""Smoothing as a stream: a median, and averaging over time of what is still."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vexpress.media.smoothing import RADIUS, median_filter, stream_denoise, stream_median_filter

DATA = Path(__file__).parents[2] / "data"


# Median filter --------------------------------------------------------------------------------------------------------
def test_median_filter_is_the_released_one():
    case = np.load(DATA / "median_filter.npz")
    filtered = median_filter(torch.from_numpy(case["video"]), int(case["kernel_size"]))
    np.testing.assert_allclose(filtered.numpy(), case["output"], atol=1e-6)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 7])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_median_filter_is_the_median_of_the_mirrored_neighbourhood(num_frames, kernel_size):
    video = torch.rand(2, num_frames, 6, 5, generator=torch.Generator().manual_seed(0))
    radius = kernel_size // 2
    mirrored = np.pad(video.numpy(), ((0, 0), *((radius, radius),) * 3), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(mirrored, (kernel_size,) * 3, axis=(1, 2, 3))
    expected = np.median(windows, axis=(4, 5, 6))
    assert np.array_equal(median_filter(video, kernel_size).numpy(), expected)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 8])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_streaming_gives_the_same_and_is_only_half_a_kernel_behind(num_frames, kernel_size):
    video = torch.rand(3, num_frames, 7, 4)
    num_taken = 0

    def frames():
        nonlocal num_taken
        for frame in video.unbind(1):
            num_taken += 1
            yield frame

    out = []
    for index, frame in enumerate(stream_median_filter(frames(), kernel_size)):
        assert num_taken == min(num_frames, index + 1 + kernel_size // 2)
        out.append(frame)
    assert torch.equal(torch.stack(out, dim=1), median_filter(video, kernel_size))


def test_no_frames_stay_no_frames_and_even_kernels_are_refused():
    assert list(stream_median_filter([], 3)) == []
    for kernel_size in (0, 2, -3):
        with pytest.raises(ValueError, match="odd"):
            median_filter(torch.rand(3, 2, 4, 4), kernel_size)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_median_filter_on_the_gpu_is_the_same():
    video = torch.rand(3, 5, 16, 12)
    assert torch.equal(median_filter(video.cuda(), 3).cpu(), median_filter(video, 3))


# Denoising over time --------------------------------------------------------------------------------------------------
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
