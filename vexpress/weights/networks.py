"""The networks of V-Express, four and an optional fifth: built by configuration, loaded and saved as released."""

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from vexpress.errors import InputError
from vexpress.files import replacing
from vexpress.model_folder import LAYOUT, ModelPaths, read_config
from vexpress.models import AttributeProjection, AudioProjection, DenoisingUNet, ReferenceNet, VKpsGuider
from vexpress.weights.bounds import check_counts
from vexpress.weights.state_dicts import load_weights

IGNORED_KEYS = {
    "reference_net": {
        "conv_out.": "comes after all that reference attention reads",
        "conv_norm_out.": "comes after all that reference attention reads",
    },
}
"""Network -> prefix of keys in released files that we do not have -> why."""

MAX_OPTIONAL_BYTES = 2**30  # of the attribute projection, which has some 2 MiB

MOTION_KEY = "motion_modules."  # in the names of parameters that belong into motion_module.*


def build_networks(
    unet_config_path: Path, v_kps_guider: Mapping[str, Any], audio_projection: Mapping[str, Any]
) -> dict[str, nn.Module]:
    """Builds the four networks, on PyTorch's default device.

    Args:
        unet_config_path: JSON of both UNets; its motion_* keys are the denoising UNet's.
        v_kps_guider: arguments of `VKpsGuider` that differ from the released ones.
        audio_projection: arguments of `AudioProjection`, likewise.

    Raises:
        InputError: a configuration that does not describe such a network.
    """
    unet_config = read_config(unet_config_path)
    reference_config = {key: value for key, value in unet_config.items() if not key.startswith("motion_")}
    for config in (unet_config, v_kps_guider, audio_projection):
        check_counts(config)
    recipes = {
        "reference_net": lambda: ReferenceNet.from_config(reference_config),
        "denoising_unet": lambda: DenoisingUNet.from_config(unet_config),
        "v_kps_guider": lambda: VKpsGuider(**v_kps_guider),
        "audio_projection": lambda: AudioProjection(**audio_projection),
    }
    networks = {}
    for name, build in recipes.items():
        where = f"configuration {unet_config_path}" if name in ("reference_net", "denoising_unet") else "configuration"
        try:
            networks[name] = build()
        except Exception as error:  # of odd types and sizes, the libraries raise anything
            raise InputError(f"{where} of {name}: makes no such network ({error})") from error
    return networks


def build_attribute_projection(config: Mapping[str, Any]) -> AttributeProjection:
    """Builds the optional fifth network, on PyTorch's default device.

    Raises:
        InputError: arguments that do not describe such a network.
    """
    try:
        with torch.device("meta"):  # nothing is allocated: a width may be a million
            num_bytes = sum(parameter.nbytes for parameter in AttributeProjection(**config).parameters())
        if num_bytes > MAX_OPTIONAL_BYTES:
            raise ValueError(f"{num_bytes / 2**30:.0f} GiB, allowed is {MAX_OPTIONAL_BYTES / 2**30:.0f}")
        return AttributeProjection(**config)
    except Exception as error:  # of odd types and sizes, the libraries raise anything
        raise InputError(f"configuration of attribute_projection: makes no such network ({error})") from error


def load_networks(
    paths: ModelPaths,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    test_stage: str = "stage_3",
) -> dict[str, nn.Module]:
    """Loads reference_net, denoising_unet, v_kps_guider, audio_projection and, if it is there, attribute_projection.

    Args:
        paths: from `ModelPaths.from_model_dir`.
        dtype: of all parameters.
        device: of all parameters.
        test_stage: "stage_1" silences audio attention and motion modules.

    Raises:
        InputError: a file is missing or does not fit.
    """
    own_configs = {}
    for name in ("v_kps_guider", "audio_projection"):
        path = getattr(paths, f"{name}_path").with_suffix(".json")
        own_configs[name] = read_config(path) if path.exists() else {}  # no file: the released size
    with torch.device("meta"):
        networks = build_networks(paths.unet_config_path, **own_configs)
        if paths.attribute_projection_path.exists():
            config = read_config(paths.attribute_projection_path.with_suffix(".json"))
            networks["attribute_projection"] = build_attribute_projection(config)
    for name, network in networks.items():
        files = [getattr(paths, f"{name}_path")]
        if name == "denoising_unet" and paths.motion_module_path.exists():
            files.insert(0, paths.motion_module_path)
        load_weights(network, files, dtype, device, IGNORED_KEYS.get(name, {}))
    if test_stage == "stage_1":
        networks["denoising_unet"].silence_audio()
        networks["denoising_unet"].silence_motion()
    return networks


def save_networks(
    folder: str | PathLike,
    reference_net: ReferenceNet,
    denoising_unet: DenoisingUNet,
    v_kps_guider: VKpsGuider,
    audio_projection: AudioProjection,
    dtype: torch.dtype | None = None,
    suffix: str = ".safetensors",
    weights: Mapping[str, Mapping[str, Tensor]] | None = None,
    attribute_projection: AttributeProjection | None = None,
) -> None:
    """Writes the released files and the configuration files into a folder of the released layout.

    Args:
        folder: made if missing.
        reference_net, denoising_unet, v_kps_guider, audio_projection: on any device.
        dtype: of floating-point weights in the files; None keeps it.
        suffix: ".safetensors" or ".bin".
        weights: network's name -> state dict to write in place of the network's own, which may be sharded.
        attribute_projection: the optional fifth network.
    """
    folder = Path(folder)
    networks = {
        "reference_net": reference_net,
        "denoising_unet": denoising_unet,
        "v_kps_guider": v_kps_guider,
        "audio_projection": audio_projection,
    }
    if attribute_projection is not None:
        networks["attribute_projection"] = attribute_projection
    parts = dict(weights) if weights else {name: network.state_dict() for name, network in networks.items()}
    unet = parts["denoising_unet"]
    parts["denoising_unet"] = {name: tensor for name, tensor in unet.items() if MOTION_KEY not in name}
    parts["motion_module"] = {name: tensor for name, tensor in unet.items() if MOTION_KEY in name}
    for name, part in parts.items():
        path = folder / (LAYOUT[f"{name}_path"] + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = {key: tensor.detach().to("cpu", dtype).contiguous() for key, tensor in part.items()}
        with replacing(path) as temporary:
            if suffix == ".safetensors":
                safetensors.torch.save_file(part, temporary, metadata={"format": "pt"})
            else:
                torch.save(part, temporary)
    configs = {
        folder / (LAYOUT["unet_config_path"] if name == "denoising_unet" else f"{LAYOUT[f'{name}_path']}.json"): network
        for name, network in networks.items()
        if name != "reference_net"
    }
    for path, network in configs.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        config = {key: value for key, value in network.config.items() if not key.startswith("_")}
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(config, indent=2) + "\n")
