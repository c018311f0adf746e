"""Guidance on functions in the place of networks."""

import pytest
import torch

from tests import tiny
from vexpress.diffusion.guidance import DROPPED, guided
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
    assert guided(predict, lambda windows: whole, 3.5, guidance)(None, None, None) == 8
    assert calls[0] is whole
    assert calls[1] == whole.without(*DROPPED[guidance])
    assert calls[1].audio_kv is None
    assert (calls[1].kps_features is None) == (guidance == "all")
    assert calls[1].audio_attention_weight == 2.0
    calls.clear()
    assert guided(predict, lambda windows: whole, 1, guidance)(None, None, None) == 3
    assert calls == [whole]  # guidance 1 costs one prediction


@torch.no_grad()
def test_all_is_without_any_condition():
    unet = tiny.denoising_unet()
    conditions = unet.prepare_conditions(
        tiny.reference_net()(torch.ones(1, 4, 8, 8)), torch.ones(1, 2, 5, 32), torch.ones(1, 32, 2, 8, 8)
    )
    arguments = (torch.ones(1, 4, 2, 8, 8), torch.tensor(7))
    dropped = unet(*arguments, conditions.without(*DROPPED["all"]))
    assert torch.equal(dropped, unet(*arguments, Conditions()))
