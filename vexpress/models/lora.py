"""Low-rank adapters (LoRA) on linear layers and convolutions of any network, by peft.

An adapter of a layer is lora_A, which narrows its input to the rank, and lora_B, which widens that to its output and
starts at zero. While adapters are there, peft puts `.base_layer` into the names of the layer's own weights.

Source: arXiv 2106.09685.
"""

import contextlib
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

DEFAULT_NAME = "default"
BASE, ADAPTER = ".base_layer", ".lora_"


def adaptable_layers(network: nn.Module) -> dict[str, nn.Module]:
    """The layers that can have an adapter, by name; a name is the same with and without adapters."""
    return {
        name.removesuffix(BASE): module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and ADAPTER not in name
    }


def adapter_shapes(layer: nn.Module, rank: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the two weights that an adapter of a layer has."""
    width, *rest = layer.weight.shape
    return {"lora_A": (rank, *rest), "lora_B": (width, rank, *(1 for _ in rest[1:]))}


def add_adapter(network: nn.Module, layers: Sequence[str], rank: int, name: str = DEFAULT_NAME) -> None:
    """Puts an adapter that changes nothing yet on layers of a network.

    Args:
        network: changed in place.
        layers: names of `adaptable_layers`.
        rank: of the adapter.
        name: of the adapter, if the network gets several.
    """
    from peft import LoraConfig, inject_adapter_in_model  # late: it takes a second, and few runs have adapters

    needs_grad = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    pattern = "|".join(map(re.escape, layers))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # of a second adapter, which is meant
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=f"({pattern})"), network, name)
    for parameter, flag in needs_grad:  # peft freezes them, and torch computes otherwise with frozen ones: 1e-6 apart
        parameter.requires_grad_(flag)


def adapter_layers(network: nn.Module) -> "dict[str, LoraLayer]":
    """The layers that have an adapter."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in network.named_modules() if isinstance(module, LoraLayer)}


def adapter_weights(state: Mapping[str, Tensor], name: str = DEFAULT_NAME) -> dict[str, Tensor]:
    """An adapter's part of a network's state dict: `LAYER.lora_A.weight` and `LAYER.lora_B.weight`."""
    end = f".{name}.weight"
    return {
        f"{key.removesuffix(end)}.weight": tensor
        for key, tensor in state.items()
        if ADAPTER in key and key.endswith(end)
    }


def base_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's state dict as it is without adapters."""
    return {key.replace(f"{BASE}.", "."): tensor for key, tensor in state.items() if ADAPTER not in key}


@torch.no_grad()
def set_adapter_weights(network: nn.Module, weights: Mapping[str, Tensor], name: str = DEFAULT_NAME) -> None:
    """Copies `adapter_weights` into an adapter that is there."""
    own = network.state_dict()
    for key, tensor in weights.items():
        own[f"{key.removesuffix('.weight')}.{name}.weight"].copy_(tensor)


def weigh_adapters(network: nn.Module, weights: Mapping[str, float]) -> None:
    """Has these adapters work, each as much as its weight says, and freezes them."""
    for layer in adapter_layers(network).values():
        layer.set_adapter(list(weights))
        for name in layer.lora_A:
            layer.set_scale(name, weights[name])
        for part in (layer.lora_A, layer.lora_B):
            part.requires_grad_(False)


def remove_adapters(network: nn.Module) -> None:
    """Leaves the network's own layers, with the weights that they have now."""
    for name, layer in adapter_layers(network).items():
        network.set_submodule(name, layer.get_base_layer())
    if hasattr(network, "peft_config"):
        del network.peft_config


def delete_adapters(network: nn.Module, names: Iterable[str]) -> None:
    """Takes out some adapters; layers that have no other are left as the network's own."""
    names = set(names)
    for path, layer in adapter_layers(network).items():
        if names >= set(layer.lora_A):
            network.set_submodule(path, layer.get_base_layer())
        else:
            for name in names & set(layer.lora_A):
                layer.delete_adapter(name)
    for name in names & set(getattr(network, "peft_config", ())):
        del network.peft_config[name]


def enable_adapters(network: nn.Module, enabled: bool) -> None:
    """Switches all adapters on or off; off, each layer does exactly what it did without."""
    for layer in adapter_layers(network).values():
        needs_grad = [parameter.requires_grad for parameter in layer.parameters()]
        layer.enable_adapters(enabled)
        for parameter, flag in zip(layer.parameters(), needs_grad):  # which peft changes along
            parameter.requires_grad_(flag)


@contextlib.contextmanager
def without_adapters(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Has networks without their adapters for as long as the block lasts: the base is a teacher at no memory."""
    networks = list(networks)
    for network in networks:
        enable_adapters(network, False)
    try:
        yield
    finally:
        for network in networks:
            enable_adapters(network, True)
