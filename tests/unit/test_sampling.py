"""Windows, averaging, and the sampling loop on functions in the place of networks."""

import pytest
import torch

from tests.tiny import CASES
from vexpress.diffusion.guidance import guided
from vexpress.diffusion.sampling import sample
from vexpress.diffusion.schedule import SCHEDULERS, build_scheduler
from vexpress.diffusion.windows import average_windows, context_windows


@pytest.mark.parametrize("key", CASES["context_windows"])
def test_windows_are_the_released_ones_where_those_fit(key):
    windows = context_windows(*map(int, key.split("_")))
    assert [[window[0], window[-1]] for window in windows] == CASES["context_windows"][key]
    assert all(window == list(range(window[0], window[-1] + 1)) for window in windows)


@pytest.mark.parametrize("num_frames", range(1, 70))
@pytest.mark.parametrize(("context_frames", "context_overlap"), [(24, 4), (8, 0), (5, 4), (1, 0)])
def test_windows_cover_every_frame(num_frames, context_frames, context_overlap):
    windows = context_windows(num_frames, context_frames, context_overlap)
    assert set().union(*windows) == set(range(num_frames))
    assert {len(window) for window in windows} == {min(num_frames, context_frames)}
    assert len({window[0] for window in windows}) == len(windows)
    for window, following in zip(windows, windows[1:]):
        assert window[-1] - following[0] + 1 >= context_overlap


@pytest.mark.parametrize("arguments", [(0, 24, 4), (10, 0, 0), (10, 4, 4), (10, 4, -1)])
def test_impossible_windows_are_errors(arguments):
    with pytest.raises(ValueError, match="must be"):
        context_windows(*arguments)


def test_average_weighs_windows_alike():
    predictions = torch.stack([torch.full((1, 3, 1, 1), 1.0), torch.full((1, 3, 1, 1), 4.0)])
    average = average_windows(predictions, [[0, 1, 2], [2, 3, 4]], 5)
    assert average.flatten().tolist() == [1, 1, 2.5, 4, 4]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_perfect_denoiser_gives_back_the_clip(name):
    """Known answer: predicting v for a known clip, every solver ends at the clip, windows or not."""
    scheduler = build_scheduler(name)
    scheduler.set_timesteps(8)
    clip = torch.randn(1, 4, 11, 2, 2, generator=torch.Generator().manual_seed(0))
    alphas = build_scheduler("ddim").alphas_cumprod

    def denoise(latents, timestep, windows):
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
        lambda latents, timestep, windows: latents.cumsum(2).tanh(),
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


def test_guidance():
    calls = []

    def predict(latents, timestep, windows, conditional):
        calls.append(conditional)
        return torch.tensor(3.0 if conditional else 1.0)

    assert guided(predict, 3.5)(None, None, None) == 8
    assert calls == [True, False]
    calls.clear()
    assert guided(predict, 1)(None, None, None) == 3
    assert calls == [True]  # guidance 1 costs one prediction


def test_unknown_scheduler():
    with pytest.raises(ValueError, match="'ddpm': allowed are ddim"):
        build_scheduler("ddpm")
