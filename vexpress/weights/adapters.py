"""Files of adapters: safetensors whose metadata say what base model they belong to.

Keys are NETWORK.LAYER.lora_A.weight and NETWORK.LAYER.lora_B.weight. Metadata: `format` "vexpress-lora", `version`,
`rank`, `targets` (JSON: network -> patterns that it was trained with) and `base_model`, see `base_digest`.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from vexpress.errors import InputError, first_line
from vexpress.files import in_one_order, replacing
from vexpress.models.lora import (
    DEFAULT_NAME,
    adaptable_layers,
    adapter_shapes,
    add_adapter,
    base_weights,
    set_adapter_weights,
)
from vexpress.weights.state_dicts import check_finite

FORMAT, VERSION = "vexpress-lora", "1"
KEY = re.compile(r"(?P<network>\w+)\.(?P<weight>(?P<layer>.+)\.(?P<part>lora_[AB])\.weight)")
MAX_RANK = 1024


@dataclass(frozen=True)
class Adapter:
    """What a file of an adapter holds.

    Attributes:
        rank: of all its layers.
        targets: network -> patterns of layers, as it was trained with.
        base_model: `base_digest` of the networks that it was trained on.
        weights: network -> LAYER.lora_A.weight and LAYER.lora_B.weight -> values.
    """

    rank: int
    targets: Mapping[str, list[str]]
    base_model: str
    weights: Mapping[str, Mapping[str, Tensor]]


def base_digest(networks: Mapping[str, nn.Module]) -> str:
    """A digest of the weights of networks, without their adapters.

    Weights count as fp16 shows them, so that a model has one digest in .bin and .safetensors files of fp32 and fp16.

    Args:
        networks: name -> network in fp32 or fp16, on any device. From bf16 the digest would be another.
    """
    digest = hashlib.sha256()
    for name, network in sorted(networks.items()):
        for key, tensor in sorted(base_weights(network.state_dict()).items()):
            digest.update(f"{name}.{key} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().to("cpu", torch.float16).contiguous().numpy())
    return digest.hexdigest()


def save_adapter(path: str | PathLike, adapter: Adapter) -> None:
    """Writes an adapter, in half precision."""
    weights = {
        f"{network}.{key}": tensor.detach().to("cpu", torch.float16).contiguous()
        for network, part in adapter.weights.items()
        for key, tensor in part.items()
    }
    facts = {"rank": str(adapter.rank), "targets": json.dumps(adapter.targets), "base_model": adapter.base_model}
    content = safetensors.torch.save(weights, {"format": FORMAT, "version": VERSION, **facts})
    with replacing(path) as temporary:
        temporary.write_bytes(in_one_order(content))


def load_adapter(path: str | PathLike) -> Adapter:
    """Reads an adapter.

    Raises:
        InputError: no such file, or it is none of ours, of a later version, damaged, or not whole.
    """
    if not Path(path).is_file():
        raise InputError("no such file", "lora", path)
    try:
        with safetensors.safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except Exception as error:  # parsers of damaged files raise anything
        raise InputError(f"is damaged, or no safetensors file ({first_line(error)})", "lora", path) from error
    if facts.get("format") != FORMAT:
        raise InputError("is no adapter of this project: its metadata do not say so", "lora", path)
    if facts.get("version") != VERSION:
        problem = f"has version {facts.get('version')} of the format, this program reads {VERSION}"
        raise InputError(problem, "lora", path)
    try:
        rank, targets, base_model = int(facts["rank"]), json.loads(facts["targets"]), facts["base_model"]
    except (KeyError, ValueError, RecursionError) as error:
        raise InputError(f"its metadata are not whole ({first_line(error)})", "lora", path) from error
    if not 1 <= rank <= MAX_RANK or not isinstance(targets, dict):
        raise InputError("its metadata are not as they were written", "lora", path)
    weights: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if not (match := KEY.fullmatch(key)):
            raise InputError(f"{key} is no weight of an adapter", "lora", path)
        if not tensor.is_floating_point():
            raise InputError(f"{key} is of whole numbers", "lora", path)
        check_finite(key, tensor, f"`lora` {path}")
        weights.setdefault(match["network"], {})[match["weight"]] = tensor
    return Adapter(rank, targets, base_model, weights)


def attach_adapter(
    networks: Mapping[str, nn.Module], adapter: Adapter, path: str | PathLike, name: str = DEFAULT_NAME
) -> None:
    """Puts an adapter on networks; nothing is changed if it does not fit.

    Args:
        networks: name -> network.
        adapter: of `load_adapter`.
        path: for messages.
        name: of the adapter, if there are several.

    Raises:
        InputError: a network or a layer is not there, has another shape, or has half an adapter.
    """
    targets: dict[str, list[str]] = {}
    for network_name, weights in adapter.weights.items():
        if network_name not in networks:
            raise InputError(f"is for {network_name}; there are {', '.join(networks)}", "lora", path)
        there = adaptable_layers(networks[network_name])
        layers = list(dict.fromkeys(key.rsplit(".lora_", 1)[0] for key in weights))
        if missing := [layer for layer in layers if layer not in there]:
            names = f"{', '.join(missing[:3])}{', ...' * (len(missing) > 3)}"
            raise InputError(f"{network_name} has no {names}: another model's adapter?", "lora", path)
        for layer in layers:
            for part, shape in adapter_shapes(there[layer], adapter.rank).items():
                found = weights.get(f"{layer}.{part}.weight")
                if found is None or found.shape != shape:
                    problem = "is missing" if found is None else f"has shape {tuple(found.shape)}, needed {shape}"
                    raise InputError(f"{network_name}.{layer}.{part} {problem}", "lora", path)
        targets[network_name] = layers
    for network_name, layers in targets.items():
        add_adapter(networks[network_name], layers, adapter.rank, name)
        set_adapter_weights(networks[network_name], adapter.weights[network_name], name)
