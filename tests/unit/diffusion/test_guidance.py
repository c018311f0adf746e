"""Guidance on functions in the place of networks."""

import pytest
import torch

from tests import tiny
from vexpress.diffusion.guidance import DROPPED, Carried, guided
from vexpress.models import Conditions
from vexpress.options import GUIDANCE


def test_the_table_of_options_names_what_there_is():
    assert tuple(DROPPED) == GUIDANCE


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_guidance(guidance):
    calls = []

    def predict(latents, timestep, conditions):
        calls.append(conditions)
        return torch.tensor(1.0 if len(calls) == 2 else 3.0)

    whole = Conditions(torch.ones(1), {"a": None}, {"a": None}, audio_attention_weight=2.0)
    assert guided(predict, lambda windows: whole, 3.5, guidance)(None, None, None, [Carried()]) == 8
    assert calls[0] is whole
    assert calls[1] == whole.without(*DROPPED[guidance])
    assert calls[1].audio_kv is None
    assert (calls[1].kps_features is None) == (guidance == "all")
    assert calls[1].audio_attention_weight == 2.0
    calls.clear()
    assert guided(predict, lambda windows: whole, 1, guidance)(None, None, None, [Carried()]) == 3
    assert calls == [whole]  # guidance 1 costs one prediction


def steps_of(num_steps: int, guidance_interval: int, deep_block_interval: int, num_windows: int = 1):
    """What is predicted at each step: (conditional?, deep blocks run?), and the denoiser's results.

    The network's predictions are the step, 10 less without conditions; and its deep blocks give the step's number.
    """
    seen, results = [], []
    carried = [Carried() for _ in range(num_windows)]

    def predict(latents, timestep, conditions, deep=None, returns_deep=False):
        is_conditional = conditions.audio_kv is not None
        seen[-1].append((is_conditional, deep is None))
        if deep is not None:
            assert deep.tolist() == list(range(num_windows))  # each window's own
        prediction = torch.full((num_windows, 1), timestep - 10.0 * (not is_conditional))
        return (prediction, torch.arange(num_windows)) if returns_deep else prediction

    whole = Conditions(audio_kv={"a": None})
    intervals = {"guidance_interval": guidance_interval, "deep_block_interval": deep_block_interval}
    denoise = guided(predict, lambda windows: whole, 3.0, "audio", **intervals)
    for step in range(num_steps):
        seen.append([])
        for window in carried:
            window.step = step
        results.append(denoise(None, float(step), None, carried))
    return seen, results


def test_what_is_computed_at_which_step():
    whole, shallow, dropped = (True, True), (True, False), (False, True)
    assert steps_of(3, 1, 1)[0] == [[whole, dropped]] * 3
    assert steps_of(4, 2, 1)[0] == [[whole, dropped], [whole]] * 2
    assert steps_of(4, 3, 2)[0] == [[whole, dropped], [shallow], [whole], [shallow, dropped]]
    assert steps_of(3, 1, 2)[0] == [[whole, dropped], [shallow, (False, False)], [whole, dropped]]
    # At step 2 the other prediction's deep blocks are 2 steps old, and at step 4 too old.
    assert steps_of(5, 2, 3)[0][2:] == [[shallow, (False, False)], [whole], [shallow, dropped]]


@pytest.mark.parametrize("guidance_interval", [1, 2, 3])
@pytest.mark.parametrize("num_windows", [1, 3])
def test_a_direction_serves_for_some_steps(guidance_interval, num_windows):
    """Here it is always 10, so reusing it changes nothing."""
    for step, result in enumerate(steps_of(5, guidance_interval, 2, num_windows)[1]):
        assert result.flatten().tolist() == [step + 20] * num_windows


@torch.no_grad()
def test_all_is_without_any_condition():
    unet = tiny.denoising_unet()
    conditions = unet.prepare_conditions(
        tiny.reference_net()(torch.ones(1, 4, 8, 8)), torch.ones(1, 2, 5, 32), torch.ones(1, 32, 2, 8, 8)
    )
    arguments = (torch.ones(1, 4, 2, 8, 8), torch.tensor(7))
    dropped = unet(*arguments, conditions.without(*DROPPED["all"]))
    assert torch.equal(dropped, unet(*arguments, Conditions()))
