"""Segment-wise sampling. It takes callables and knows no network.

At each timestep the clip's overlapping windows are predicted one by one, predictions of a frame are averaged, and the
scheduler takes one step for the whole clip. So solvers that look back at former predictions are right too.
"""

import inspect
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from diffusers import SchedulerMixin
from torch import Tensor

Denoise = Callable[[Tensor, Tensor, list[list[int]]], Tensor]
"""(latents (k c f h w) of k windows, timestep, the windows' frames) -> prediction (k c f h w)."""


def context_windows(num_frames: int, context_frames: int, context_overlap: int) -> list[list[int]]:
    """Covers a clip with overlapping windows.

    Args:
        num_frames: frames of the clip, 1 and up.
        context_frames: frames of a window; a shorter clip is one window.
        context_overlap: frames that neighbours share, 0 to `context_frames` - 1.

    Returns:
        The frames of each window, in order. The last window ends with the clip and may overlap its neighbour more.

    Raises:
        ValueError: a number is out of range.

    Differs from the release: any number of frames. The release drops a tail that fills no window, and fails on clips
    shorter than one. Where its counts fit, the windows are the same.
    """
    if num_frames < 1 or context_frames < 1:
        raise ValueError(f"{num_frames} frames in windows of {context_frames}: both must be at least 1")
    if not 0 <= context_overlap < context_frames:
        raise ValueError(f"context_overlap {context_overlap}: must be 0 to {context_frames - 1}, below context_frames")
    if num_frames <= context_frames:
        return [list(range(num_frames))]
    stride = context_frames - context_overlap
    starts = [*range(0, num_frames - context_frames, stride), num_frames - context_frames]
    return [list(range(start, start + context_frames)) for start in starts]


def guided(predict: Callable[..., Tensor], guidance_scale: float) -> Denoise:
    """Classifier-free guidance as a denoiser.

    Args:
        predict: a `Denoise` with a keyword `conditional`; False predicts with all conditions dropped.
        guidance_scale: 1 is the conditional prediction alone, and saves the other.
    """

    def denoise(latents: Tensor, timestep: Tensor, windows: list[list[int]]) -> Tensor:
        conditional = predict(latents, timestep, windows, conditional=True)
        if guidance_scale == 1:
            return conditional
        unconditional = predict(latents, timestep, windows, conditional=False)
        return unconditional + guidance_scale * (conditional - unconditional)

    return denoise


def average_windows(predictions: Tensor, windows: Sequence[Sequence[int]], num_frames: int) -> Tensor:
    """Averages window predictions (k c f h w) per frame to (1 c num_frames h w)."""
    total = predictions.new_zeros(1, predictions.shape[1], num_frames, *predictions.shape[3:])
    count = predictions.new_zeros(num_frames, 1, 1)
    for prediction, window in zip(predictions, windows):
        total[:, :, window] += prediction
        count[window] += 1
    return total / count


def own_windows(windows: Sequence) -> range:
    """Indices of the windows that this process predicts: all of them, outside of a `torch.distributed` group."""
    rank, num_processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    return range(rank, len(windows), num_processes)


def sample(
    denoise: Denoise,
    latents: Tensor,
    scheduler: SchedulerMixin,
    windows: list[list[int]],
    *,
    windows_per_batch: int = 1,
    generator: torch.Generator | None = None,
    on_window: Callable[[int], None] = lambda count: None,
    on_step: Callable[[int, Tensor, Tensor], Tensor | None] | None = None,
) -> Tensor:
    """Denoises a clip.

    In a `torch.distributed` group the windows of each step are dealt out to the processes. Every process then holds
    all predictions and takes the same step, so the result is that of one process.

    Args:
        denoise: predicts windows.
        latents: noise (1 c f h w), float32; it stays on its device, and so do the predictions.
        scheduler: with its timesteps set.
        windows: from `context_windows`.
        windows_per_batch: how many windows `denoise` gets at once.
        generator: noise of stochastic schedulers.
        on_window: called with the number of windows just predicted.
        on_step: called with step, timestep and latents after each step; may return other latents.

    Returns:
        Denoised latents (1 c f h w).
    """
    own = own_windows(windows)
    accepts_generator = "generator" in inspect.signature(scheduler.step).parameters
    step_options = {"generator": generator} if accepts_generator else {}

    for step, timestep in enumerate(scheduler.timesteps):
        model_input = scheduler.scale_model_input(latents, timestep)
        predictions = latents.new_zeros(len(windows), latents.shape[1], len(windows[0]), *latents.shape[3:])
        for start in range(0, len(own), windows_per_batch):
            batch = own[start : start + windows_per_batch]
            frames = [windows[i] for i in batch]
            noisy = torch.cat([model_input[:, :, window] for window in frames])
            predictions[list(batch)] = denoise(noisy, timestep, frames).to(predictions)
            on_window(len(batch))
        if dist.is_initialized():  # others' rows are zeros, so this sum is a gather, and exact
            dist.all_reduce(predictions)
        prediction = average_windows(predictions, windows, latents.shape[2])
        latents = scheduler.step(prediction, timestep, latents, **step_options).prev_sample
        replacement = on_step and on_step(step, timestep, latents)
        latents = latents if replacement is None else replacement
    return latents
