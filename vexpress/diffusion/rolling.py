"""Rolling sampling: windows one after the other, each denoised to the end. It takes callables and knows no network.

Frames are finished as soon as their window is, and only the last window is held, so memory and the time to the first
frame do not depend on the clip's length, which need not even be known. Frames that a window shares with the one before
are held, at each noise level, to what they were there when they were made. Towards the end of the overlap the hold
loosens, so that one window fades into the other.
"""

import copy
from collections.abc import Callable, Iterable, Iterator

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from vexpress.diffusion.guidance import Carried, Denoise
from vexpress.diffusion.sampling import OnStep, step_options

NoiseSource = Callable[[int], Tensor]
"""Number of frames -> initial noise (1 c f h w) of that many more."""


def roll(
    denoise: Denoise,
    windows: Iterable[list[int]],
    new_noise: NoiseSource,
    scheduler: SchedulerMixin,
    context_overlap: int,
    *,
    generator: torch.Generator | None = None,
    on_window: Callable[[int], None] = lambda count: None,
    on_step: OnStep | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Iterator[Tensor]:
    """Denoises a clip window by window.

    Args:
        denoise: predicts a window.
        windows: the frames of each, in order; asked for one after the other, as frames are.
        new_noise: unit normal; called once per window.
        scheduler: with its timesteps set.
        context_overlap: frames that neighbouring windows share. The last window may share more.
        generator: noise of stochastic schedulers.
        on_window: called with 1 after each step of a window.
        on_step: see `OnStep`; latents are the window's.
        interrupted: True ends the work before the next step; what there is of the window is given.

    Yields:
        Latents (1 c k h w) of the next k frames. Those that the next window shares come after it.
    """
    options = step_options(scheduler, generator)
    frames: list[int] = []
    levels: list[Tensor] = []  # the window's latents before each step, and at the end
    num_given = 0
    for window in windows:
        # 1. the window's frames: those shared with the window before, and noise
        num_shared = len([frame for frame in window if frames and frame <= frames[-1]])
        held = [latents[:, :, -num_shared:] for latents in levels] if num_shared else []
        share = fade(num_shared, context_overlap)
        solver = copy.deepcopy(scheduler)  # without the history of the window before
        latents = new_noise(len(window) - num_shared) * solver.init_noise_sigma
        if num_shared:
            latents = torch.cat([held[0], latents], dim=2)
            share = share.to(latents)

        # 2. denoise it
        levels, carried = [latents], Carried()
        for step, timestep in enumerate(solver.timesteps):
            if interrupted():
                break
            carried.step = step
            noisy = solver.scale_model_input(latents, timestep)
            prediction = denoise(noisy, timestep, [window], [carried]).to(latents)
            latents = solver.step(prediction, timestep, latents, **options).prev_sample
            if num_shared:
                latents[:, :, :num_shared].lerp_(held[step + 1], 1 - share)
            on_window(1)
            replacement = on_step and on_step(step, timestep, latents)
            latents = latents if replacement is None else replacement
            levels.append(latents)

        # 3. give what no further window can change; whoever takes it may begin another call, which undoes interruptions
        frames, is_last = window, interrupted()
        stop = max(num_given, window[-1] + 1 - context_overlap)
        if stop > num_given:
            yield latents[:, :, num_given - window[0] : stop - window[0]]
            num_given = stop
        if is_last:
            break
    if frames and num_given <= frames[-1]:
        yield levels[-1][:, :, num_given - frames[0] :]


def fade(num_shared: int, context_overlap: int) -> Tensor:
    """How much each shared frame is the new window's, (num_shared 1 1): 0 where frames were given, then rising to 1."""
    num_free = min(num_shared, context_overlap)
    rising = torch.arange(1, num_free + 1) / (num_free + 1)
    return torch.cat([torch.zeros(num_shared - num_free), rising])[:, None, None]
