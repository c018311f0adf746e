"""Adapters on real tiny networks."""

import pytest
import torch

from tests import tiny
from vexpress.models import lora

LAYERS = ["conv_in", "mid_block.resnets.0.conv1", "mid_block.attentions.0.transformer_blocks.0.attn1_5.to_v"]


@pytest.fixture
def unet():
    return tiny.denoising_unet()


@torch.no_grad()
def predict(unet) -> torch.Tensor:
    """One prediction without conditions, whose attention reads output biases alone."""
    noise = torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    tokens = torch.randn(1, 2, 4, unet.config.cross_attention_dim, generator=torch.Generator().manual_seed(1))
    return unet(noise, torch.tensor([500]), unet.prepare_conditions(audio_tokens=tokens))


def randomise(network, name: str = lora.DEFAULT_NAME, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = lora.adapter_weights(network.state_dict(), name)
    new = {key: 0.1 * torch.randn(tensor.shape, generator=generator) for key, tensor in weights.items()}
    lora.set_adapter_weights(network, new, name)


def test_an_adapter_has_the_announced_shapes(unet):
    layers = lora.adaptable_layers(unet)
    lora.add_adapter(unet, LAYERS, rank=3)
    weights = lora.adapter_weights(unet.state_dict())
    expected = {
        f"{name}.{part}.weight": shape
        for name in LAYERS
        for part, shape in lora.adapter_shapes(layers[name], 3).items()
    }
    assert {key: tuple(tensor.shape) for key, tensor in weights.items()} == expected
    assert set(lora.adaptable_layers(unet)) == set(layers)  # names do not change


def test_patterns_of_names_are_taken_literally(unet):
    lora.add_adapter(unet, ["conv_in"], rank=1)
    assert list(lora.adapter_layers(unet)) == ["conv_in"]  # not all that end so


def test_a_new_one_changes_nothing_and_off_or_removed_is_exact(unet):
    before, names = predict(unet), list(unet.state_dict())
    lora.add_adapter(unet, LAYERS, rank=3)
    assert torch.allclose(predict(unet), before, atol=1e-5)
    randomise(unet)
    changed = predict(unet)
    assert not torch.allclose(changed, before)
    with lora.without_adapters([unet]):
        assert torch.equal(predict(unet), before)
    assert torch.equal(predict(unet), changed)
    assert all(parameter.requires_grad for parameter in unet.parameters())  # as before, or rounding would differ
    lora.remove_adapters(unet)
    assert torch.equal(predict(unet), before)
    assert list(unet.state_dict()) == names and not lora.adapter_layers(unet)


def test_the_effect_is_the_product_of_both_weights(unet):
    layer = lora.adaptable_layers(unet)[LAYERS[2]]
    lora.add_adapter(unet, LAYERS, rank=3)
    randomise(unet)
    weights = lora.adapter_weights(unet.state_dict())
    narrow, wide = (weights[f"{LAYERS[2]}.lora_{part}.weight"] for part in "AB")
    x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(2))
    expected = x @ (layer.weight + wide @ narrow).T
    assert torch.allclose(lora.adapter_layers(unet)[LAYERS[2]](x), expected, atol=1e-5)


def test_several_adapters_have_names_and_the_base_is_read_without_them(unet):
    base = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    lora.add_adapter(unet, LAYERS[:2], 3, "one")
    lora.add_adapter(unet, LAYERS[1:], 2, "two")
    randomise(unet, "one")
    assert all(
        not tensor.any() for key, tensor in lora.adapter_weights(unet.state_dict(), "two").items() if "_B" in key
    )
    read = lora.base_weights(unet.state_dict())
    assert read.keys() == base.keys() and all(torch.equal(read[name], base[name]) for name in base)
