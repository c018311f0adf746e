"""Segment-wise sampling. It takes callables and knows no network.

At each timestep the clip's overlapping windows are predicted one by one, predictions of a frame are averaged, and the
scheduler takes one step for the whole clip. So solvers that look back at former predictions are right too.

A clip may be long, so nothing but its latents is kept for all of it: once no more window has a frame, that frame takes
its step and its predictions are forgotten. Frames take the same step whether together or apart.
"""

import copy
import inspect
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from diffusers import SchedulerMixin
from torch import Tensor

from vexpress.diffusion.guidance import Carried, Denoise
from vexpress.diffusion.schedule import steps_at_random
from vexpress.diffusion.windows import WindowAverage

OnStep = Callable[[int, Tensor, Tensor], Tensor | None]
"""Called with step, timestep and latents after each step; may return other latents."""


def sample(
    denoise: Denoise,
    latents: Tensor,
    scheduler: SchedulerMixin,
    windows: list[list[int]],
    *,
    windows_per_batch: int = 1,
    generator: torch.Generator | None = None,
    on_window: Callable[[int], None] = lambda count: None,
    on_step: OnStep | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    ranks: tuple[int, int] = (0, 1),
) -> Tensor:
    """Denoises a clip.

    With `group_rank()` as `ranks`, windows are dealt out to the processes of a `torch.distributed` group, all of which
    must call this for the same clip. Each gets all predictions and takes the same step, so the result is that of one
    process.

    Args:
        denoise: predicts windows.
        latents: noise (1 c f h w), float32; it stays on its device, and is overwritten.
        scheduler: with its timesteps set.
        windows: from `context_windows`.
        windows_per_batch: how many windows `denoise` gets at once.
        generator: noise of stochastic schedulers.
        on_window: called with the number of windows that this process has just predicted.
        on_step: see `OnStep`.
        interrupted: True ends the work before the next step.
        ranks: this process's number, and how many share the windows.

    Returns:
        Denoised latents (1 c f h w).
    """
    # Frames that are complete once window i is predicted, and the scheduler that steps them, which has their history.
    stops = [window[0] for window in windows[1:]] + [latents.shape[2]]
    if steps_at_random(scheduler):  # noise is of the whole clip's shape
        schedulers, stops = [scheduler] * len(windows), [0] * (len(windows) - 1) + [latents.shape[2]]
    else:
        schedulers = [copy.deepcopy(scheduler) for _ in windows]
    options = step_options(scheduler, generator)
    carried = [Carried() for _ in windows]
    num_at_once = windows_per_batch * ranks[1]

    for step, timestep in enumerate(scheduler.timesteps):
        if interrupted():
            break
        average = WindowAverage()
        for first in range(0, len(windows), num_at_once):
            some = windows[first : first + num_at_once]
            noisy = [
                schedulers[first + i].scale_model_input(latents[:, :, window], timestep)
                for i, window in enumerate(some)
            ]
            for window in carried[first : first + num_at_once]:
                window.step = step
            predictions = _predict(denoise, noisy, timestep, some, carried[first : first + num_at_once], ranks)
            on_window(len(range(ranks[0], len(some), ranks[1])))
            for i, window in enumerate(some, first):
                average.add(predictions[i - first], window)
                frames = slice(average.first_frame, stops[i])
                if frames.stop > frames.start:
                    # A copy goes in, since some schedulers keep what they got.
                    before, prediction = latents[:, :, frames].clone(), average.take(frames.stop)
                    latents[:, :, frames] = schedulers[i].step(prediction, timestep, before, **options).prev_sample
        replacement = on_step and on_step(step, timestep, latents)
        latents = latents if replacement is None else replacement
    return latents


def group_rank() -> tuple[int, int]:
    """This process's number and how many there are: (0, 1) outside of a `torch.distributed` group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def step_options(scheduler: SchedulerMixin, generator: torch.Generator | None) -> dict[str, torch.Generator | None]:
    """Keyword arguments of `scheduler.step`: the generator, where it takes one."""
    accepts_generator = "generator" in inspect.signature(scheduler.step).parameters
    return {"generator": generator} if accepts_generator else {}


def _predict(
    denoise: Denoise,
    noisy: Sequence[Tensor],
    timestep: Tensor,
    windows: list[list[int]],
    carried: list[Carried],
    ranks: tuple[int, int],
) -> Tensor:
    """Predicts some windows (k c f h w), this process its share of them."""
    rank, num_processes = ranks
    predictions = noisy[0].new_zeros(len(windows), *noisy[0].shape[1:])
    if own := list(range(rank, len(windows), num_processes)):
        inputs = (torch.cat([noisy[i] for i in own]), timestep, [windows[i] for i in own], [carried[i] for i in own])
        predictions[own] = denoise(*inputs).to(predictions)
    if num_processes > 1:  # others' rows are zeros, so this sum is a gather, and exact
        dist.all_reduce(predictions)
    return predictions
