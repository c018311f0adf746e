"""Samplers by name, and noise that frames share."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler

from vexpress.diffusion.schedule import SCHEDULER_CLASSES, build_scheduler, share_noise, steps_at_random
from vexpress.errors import InputError
from vexpress.options import SCHEDULERS


def test_the_table_of_options_names_what_there_is():
    assert tuple(SCHEDULER_CLASSES) == SCHEDULERS
    assert all(type(build_scheduler(name)) is SCHEDULER_CLASSES[name] for name in SCHEDULERS)


def test_unknown_scheduler():
    with pytest.raises(InputError, match="scheduler='ddpm': must be one of ddim"):
        build_scheduler("ddpm")


def test_which_schedulers_step_at_random():
    assert [name for name in SCHEDULERS if steps_at_random(build_scheduler(name))] == ["lcm"]
    assert steps_at_random(DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"))
    assert steps_at_random(EulerAncestralDiscreteScheduler())


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_shared_noise_keeps_each_frame_normal_and_correlates_frames(share):
    torch.manual_seed(0)
    noise, shared = torch.randn(4, 6, 50, 50), torch.randn(4, 1, 50, 50)
    mixed = share_noise(noise, shared, share)
    assert mixed.var(dim=(0, 2, 3)).sub(1).abs().max() < 0.05
    assert abs((mixed[:, 0] * mixed[:, 1]).mean() - share) < 0.03
    assert torch.equal(mixed, noise) if share == 0 else True
