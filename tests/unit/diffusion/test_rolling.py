"""Rolling sampling on functions in the place of networks."""

import itertools

import pytest
import torch

from vexpress.diffusion.rolling import fade, roll
from vexpress.diffusion.sampling import sample
from vexpress.diffusion.schedule import build_scheduler
from vexpress.diffusion.windows import context_windows
from vexpress.options import SCHEDULERS

SHAPE = (1, 2, 1, 3, 3)


def noise_source(seed: int = 3):
    generator = torch.Generator().manual_seed(seed)
    return lambda num_frames: torch.randn(1, 2, num_frames, 3, 3, generator=generator)


def mixing(latents, timestep, windows, carried):
    """Every frame depends on those before it."""
    return latents.cumsum(2).tanh()


def scheduler_of(name: str = "ddim", num_steps: int = 4):
    scheduler = build_scheduler(name)
    scheduler.set_timesteps(num_steps)
    return scheduler


def rolled(num_frames: int, denoise=mixing, name: str = "ddim", context: tuple[int, int] = (6, 2), **options):
    windows = context_windows(num_frames, *context)
    return list(roll(denoise, windows, noise_source(), scheduler_of(name), context[1], **options))


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("num_frames", [1, 5, 6])
def test_one_window_is_joint_sampling(name, num_frames):
    scheduler = scheduler_of(name)
    noise = noise_source()(num_frames) * scheduler.init_noise_sigma
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    joint = sample(mixing, noise, scheduler, [list(range(num_frames))], generator=generators[0])
    assert torch.equal(torch.cat(rolled(num_frames, name=name, generator=generators[1]), dim=2), joint)


@pytest.mark.parametrize("num_frames", range(1, 40))
@pytest.mark.parametrize("context", [(6, 2), (5, 4), (4, 0), (1, 0)])
def test_every_frame_is_given_once(num_frames, context):
    """Each frame's latents become its number, if the network says so; overlapping windows agree on it."""

    def numbered(latents, timestep, windows, carried):
        clean = torch.tensor(windows[0], dtype=torch.float32)[None, None, :, None, None].expand_as(latents)
        alpha = build_scheduler("ddim").alphas_cumprod[int(timestep)]
        noise = (latents - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * clean

    frames = torch.cat(rolled(num_frames, numbered, context=context), dim=2)[0, 0, :, 0, 0]
    torch.testing.assert_close(frames, torch.arange(num_frames).float(), atol=1e-2, rtol=0)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_frames_do_not_depend_on_those_that_follow_their_next_window(name):
    """So they can be given before these are known. The first 6 frames end in the first two windows of 10 and 18."""
    short, long = (torch.cat(rolled(n, name=name, generator=torch.Generator().manual_seed(0)), 2) for n in (10, 18))
    if name != "lcm":  # whose noise comes in the order of steps
        assert torch.equal(short[:, :, :8], long[:, :, :8])


def test_frames_leave_as_soon_as_their_window_is_done():
    predicted = []

    def denoise(latents, timestep, windows, carried):
        predicted.append(windows[0][0])
        return mixing(latents, timestep, windows, carried)

    endless = ([first + i for i in range(6)] for first in itertools.count(0, 4))
    parts = roll(denoise, endless, noise_source(), scheduler_of(), 2)
    assert next(parts).shape[2] == 4  # all but the two that the next window shares
    assert set(predicted) == {0}
    assert next(parts).shape[2] == 4
    assert set(predicted) == {0, 4}


def test_overlap_fades_from_one_window_into_the_next():
    assert fade(4, 4).flatten().tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert fade(5, 2).flatten().tolist() == pytest.approx([0, 0, 0, 1 / 3, 2 / 3])
    assert fade(0, 2).numel() == 0

    def by_window(latents, timestep, windows, carried):
        """A v-prediction that leads to 0 in the first window and to 1 in the second."""
        clean = torch.full_like(latents, float(windows[0][0] > 0))
        alpha = build_scheduler("ddim").alphas_cumprod[int(timestep)]
        noise = (latents - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * clean

    frames = torch.cat(rolled(8, by_window, context=(5, 2)), dim=2)[0, 0, :, 0, 0]
    assert frames[:3].abs().max() < 1e-2
    assert (frames[5:] - 1).abs().max() < 1e-2
    assert 0.2 < frames[3] < frames[4] < 0.9


def test_callbacks_and_interruption():
    steps, counts = [], []
    done = rolled(
        14,
        on_step=lambda step, timestep, latents: steps.append(step),
        on_window=counts.append,
        interrupted=lambda: len(steps) == 6,
    )
    assert steps == [0, 1, 2, 3, 0, 1]
    assert sum(counts) == 6
    assert torch.cat(done, dim=2).shape[2] == 10  # two windows of 6 that share 2
    zeros = rolled(14, on_step=lambda step, timestep, latents: torch.zeros_like(latents) if step == 3 else None)
    assert torch.cat(zeros, dim=2).abs().max() < 1  # what was held of a window before was replaced, too
