"""Training adapters in place of the networks: which layers have one, by the patterns of a configuration."""

import re
from collections.abc import Collection, Sequence

from torch import nn

from vexpress.errors import InputError
from vexpress.models.lora import ADAPTER, adaptable_layers, add_adapter
from vexpress.training.config import LoraConfig


def choose_layers(network: nn.Module, trained: Collection[str], patterns: Sequence[str], field: str) -> list[str]:
    """Names of the layers that get an adapter: those that the stage trains and that one of the patterns matches.

    Args:
        network: without adapters.
        trained: names of the parameters that the stage would train.
        patterns: regular expressions that match from the start of the name of a layer's weight.
        field: for messages.

    Raises:
        InputError: a pattern matches none of them.
    """
    names = [name for name in adaptable_layers(network) if f"{name}.weight" in trained]
    chosen: set[str] = set()
    for pattern in patterns:
        matched = {name for name in names if re.match(pattern, f"{name}.weight")}
        if not matched:
            raise InputError(f"matches none of the {len(names)} layers that this stage trains", field, pattern)
        chosen |= matched
    return [name for name in names if name in chosen]


def add_adapters(network: nn.Module, name: str, trained: Collection[str], lora: LoraConfig) -> set[str]:
    """Puts adapters on the layers of one network that `lora.targets` names, if it names any.

    Args:
        network: changed in place.
        name: of the network.
        trained: names of the parameters that the stage would train.
        lora: the configuration.

    Returns:
        Names of the parameters that are trained instead.
    """
    if not (patterns := lora.targets.get(name)):
        return set()
    add_adapter(network, choose_layers(network, trained, patterns, f"lora.targets.{name}"), lora.rank)
    return {name for name, _ in network.named_parameters() if ADAPTER in name}
