"""The sampling loop on functions in the place of networks."""

import inspect

import pytest
import torch

from vexpress.diffusion.sampling import sample
from vexpress.diffusion.schedule import build_scheduler
from vexpress.diffusion.windows import context_windows
from vexpress.options import SCHEDULERS


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_perfect_denoiser_gives_back_the_clip(name):
    """Known answer: predicting v for a known clip, every solver ends at the clip, windows or not."""
    scheduler = build_scheduler(name)
    scheduler.set_timesteps(8)
    clip = torch.randn(1, 4, 11, 2, 2, generator=torch.Generator().manual_seed(0))
    alphas = build_scheduler("ddim").alphas_cumprod

    def denoise(latents, timestep, windows, carried):
        true = torch.cat([clip[:, :, window] for window in windows])
        alpha = alphas[int(timestep)]
        noise = (latents - alpha.sqrt() * true) / (1 - alpha).sqrt()
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * true

    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(1)) * scheduler.init_noise_sigma
    windows = context_windows(11, 4, 1)
    generator = torch.Generator().manual_seed(2)
    result = sample(denoise, noise, scheduler, windows, generator=generator)
    assert (result - clip).abs().max() < 0.05


def run(windows_per_batch: int = 1, on_step=None, seed: int = 0, name: str = "ddim") -> torch.Tensor:
    scheduler = build_scheduler(name)
    scheduler.set_timesteps(4)
    noise = torch.randn(1, 2, 10, 2, 2, generator=torch.Generator().manual_seed(3)) * scheduler.init_noise_sigma
    return sample(
        lambda latents, timestep, windows, carried: latents.cumsum(2).tanh(),
        noise,
        scheduler,
        context_windows(10, 4, 2),
        windows_per_batch=windows_per_batch,
        generator=torch.Generator().manual_seed(seed),
        on_step=on_step,
    )


def test_batching_windows_changes_nothing():
    assert torch.equal(run(windows_per_batch=3), run())


def test_stochastic_schedulers_follow_the_seed():
    assert torch.equal(run(name="lcm", seed=1), run(name="lcm", seed=1))
    assert not torch.equal(run(name="lcm", seed=1), run(name="lcm", seed=2))


def test_callback_sees_each_step_and_may_replace_latents():
    seen = []

    def on_step(step, timestep, latents):
        seen.append((step, int(timestep)))
        return torch.zeros_like(latents) if step == 3 else None

    assert run(on_step=on_step).abs().max() == 0
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert seen[0][1] == 999


def whole_clip_sample(denoise, latents, scheduler, windows, generator=None):
    """The plain form: all predictions of a step are held, and the scheduler steps the clip at once."""
    for timestep in scheduler.timesteps:
        model_input = scheduler.scale_model_input(latents, timestep)
        total, count = torch.zeros_like(latents), torch.zeros(latents.shape[2], 1, 1)
        for window in windows:
            total[:, :, window] += denoise(model_input[:, :, window], timestep, [window], [])
            count[window] += 1
        options = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
        latents = scheduler.step(total / count, timestep, latents, **options).prev_sample
    return latents


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("num_frames", [3, 10, 23])
def test_frames_that_step_apart_are_those_that_step_together(name, num_frames):
    """Bit for bit, also with solvers that look back at former predictions and with those that add noise."""

    def run_with(function):
        scheduler = build_scheduler(name)
        scheduler.set_timesteps(5)
        noise = torch.randn(1, 2, num_frames, 3, 5, generator=torch.Generator().manual_seed(3))
        windows = context_windows(num_frames, 6, 4)
        arguments = (lambda latents, timestep, windows, carried: latents.cumsum(2).tanh(), noise, scheduler, windows)
        return function(*arguments, generator=torch.Generator().manual_seed(1))

    assert torch.equal(run_with(sample), run_with(whole_clip_sample))


def test_interruption_ends_after_the_step():
    steps = []
    scheduler = build_scheduler("ddim")
    scheduler.set_timesteps(4)
    noise = torch.randn(1, 2, 10, 2, 2)
    sample(
        lambda latents, timestep, windows, carried: latents,
        noise,
        scheduler,
        context_windows(10, 4, 2),
        on_step=lambda step, timestep, latents: steps.append(step),
        interrupted=lambda: len(steps) == 2,
    )
    assert steps == [0, 1]
