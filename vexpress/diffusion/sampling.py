"""Segment-wise sampling. It takes callables and knows no network.

At each timestep the clip's overlapping windows are predicted one by one, predictions of a frame are averaged, and the
scheduler takes one step for the whole clip. So solvers that look back at former predictions are right too.
"""

import inspect
from collections.abc import Callable

import torch
import torch.distributed as dist
from diffusers import SchedulerMixin
from torch import Tensor

from vexpress.diffusion.guidance import Denoise
from vexpress.diffusion.windows import average_windows, own_windows


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
