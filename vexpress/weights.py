"""Weight files: read without executing anything, and put into networks strictly."""

import json
import pickle
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any

import safetensors.torch
import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model
from transformers.utils.logging import disable_progress_bar

from vexpress.errors import InputError, first_line
from vexpress.files import replacing
from vexpress.model_folder import LAYOUT, ModelPaths, read_config
from vexpress.models import AudioProjection, DenoisingUNet, ReferenceNet, VKpsGuider

BYTES_PER_MAPPING = 2**29
OLD_AUDIO_ATTENTION = re.compile(r"attn2\.processor\.to_(q|k|v|out)_aud\.(0\.)?")


# ---- reading -------------------------------------------------------------------------------------------------------


def read_state_dict(path: str | PathLike) -> dict[str, Tensor]:
    """Maps a weights file into memory, without reading it yet and without executing anything in it.

    Args:
        path: `.safetensors`, or a PyTorch file under any other suffix.

    Raises:
        InputError: missing, damaged, not a flat dictionary of tensors, or a pickle that wants to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"weights file {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            weights = safetensors.torch.load_file(path)
        else:
            mmap = _is_zip(path)  # the format before PyTorch 1.6 cannot be mapped
            weights = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise InputError(f"weights file {path}: refused, holds more than tensors ({first_line(error)})") from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError(f"weights file {path}: damaged or not a weights file ({first_line(error)})") from error
    if isinstance(weights, dict) and isinstance(weights.get("state_dict"), dict):
        weights = weights["state_dict"]
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise InputError(f"weights file {path}: does not hold a dictionary of tensors")
    return rename_old_audio_attention(weights)


def rename_old_audio_attention(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Brings the older form of audio attention to its present names.

    attn2.processor.to_{q,k,v,out}_aud.* -> attn2.to_{q,k,v,out.0}.*, in place of text attention under these names.
    """

    def rename(match: re.Match) -> str:
        return "attn2.to_out.0." if match[1] == "out" else f"attn2.to_{match[1]}."

    renamed = {OLD_AUDIO_ATTENTION.sub(rename, name): tensor for name, tensor in weights.items()}
    return renamed | {
        OLD_AUDIO_ATTENTION.sub(rename, name): tensor
        for name, tensor in weights.items()
        if OLD_AUDIO_ATTENTION.search(name)
    }


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def load_weights(
    network: nn.Module,
    paths: list[Path],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    ignored_keys: Mapping[str, str] = MappingProxyType({}),
) -> nn.Module:
    """Gives a network, built on the meta device, its weights; together the files must cover it, and no more.

    Weights go straight to their dtype and device, some 512 MiB at a time: a file is mapped anew for each part, since
    pages of a mapping that were read count as this process's memory until it ends.

    Args:
        network: its parameters are replaced, not copied into.
        paths: files; of a key that several hold, the first counts.
        dtype: of the loaded parameters.
        device: of the loaded parameters.
        ignored_keys: prefix of keys that the files may hold and the network has not -> why.

    Returns:
        `network`, in eval mode.

    Raises:
        InputError: missing, unexpected or misshapen keys, listed.
    """
    own = network.state_dict()
    source: dict[str, Path] = {}
    shapes: dict[str, torch.Size] = {}
    for path in paths:
        for name, tensor in read_state_dict(path).items():
            if name not in source and not name.startswith(tuple(ignored_keys)):
                source[name], shapes[name] = path, tensor.shape
    problems = {
        "missing": [name for name in own if name not in source],
        "unexpected": [name for name in source if name not in own],
        "misshapen": [
            f"{name} {tuple(shapes[name])} for {tuple(tensor.shape)}"
            for name, tensor in own.items()
            if name in shapes and shapes[name] != tensor.shape
        ],
    }
    if any(problems.values()):
        found = "; ".join(
            f"{len(names)} {kind}: {', '.join(names[:4])}{', ...' * (len(names) > 4)}"
            for kind, names in problems.items()
            if names
        )
        files = " and ".join(map(str, paths))
        raise InputError(f"{files} not fit for {type(network).__name__}: {found}; another model's file or size?")

    loaded: dict[str, Tensor] = {}
    for path in paths:
        names = [name for name in own if source[name] == path]
        while names:
            weights, num_bytes = read_state_dict(path), 0
            while names and num_bytes < BYTES_PER_MAPPING:
                name = names.pop()
                num_bytes += weights[name].nbytes
                loaded[name] = weights[name].to(device=device, dtype=dtype)
    network.load_state_dict(loaded, assign=True)
    return network.eval()


IGNORED_KEYS = {
    "reference_net": {
        "conv_out.": "comes after all that reference attention reads",
        "conv_norm_out.": "comes after all that reference attention reads",
    },
}
"""Network -> prefix of keys in released files that we do not have -> why."""

UNUSED_LIBRARY_WEIGHTS = {"masked_spec_embed": "wav2vec2 reads it in its own training only"}
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
    recipes = {
        "reference_net": lambda: ReferenceNet.from_config(reference_config),
        "denoising_unet": lambda: DenoisingUNet.from_config(unet_config),
        "v_kps_guider": lambda: VKpsGuider(**v_kps_guider),
        "audio_projection": lambda: AudioProjection(**audio_projection),
    }
    networks = {}
    for name, build in recipes.items():
        try:
            networks[name] = build()
        except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
            where = (
                f"configuration {unet_config_path}" if name in ("reference_net", "denoising_unet") else "configuration"
            )
            raise InputError(f"{where} of {name}: makes no such network ({error})") from error
    return networks


def load_networks(
    paths: ModelPaths,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    test_stage: str = "stage_3",
) -> dict[str, nn.Module]:
    """Loads the four networks: reference_net, denoising_unet, v_kps_guider, audio_projection.

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
    for name, network in networks.items():
        files = [getattr(paths, f"{name}_path")]
        if name == "denoising_unet" and paths.motion_module_path.exists():
            files.insert(0, paths.motion_module_path)
        load_weights(network, files, dtype, device, IGNORED_KEYS.get(name, {}))
    if test_stage == "stage_1":
        networks["denoising_unet"].silence_audio()
        networks["denoising_unet"].silence_motion()
    return networks


def load_vae(
    folder: str | PathLike,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    field: str = "vae_path",
) -> AutoencoderKL:
    """Loads the image autoencoder.

    Raises:
        InputError: it cannot be loaded, or weights are missing; `flag` is named.
    """
    return _load_model(AutoencoderKL, folder, field, torch_dtype=dtype, low_cpu_mem_usage=False).to(device)


def load_audio_encoder(
    folder: str | PathLike,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    field: str = "audio_encoder_path",
) -> tuple[Wav2Vec2Model, Wav2Vec2FeatureExtractor]:
    """Loads the audio encoder and its feature extractor.

    Raises:
        InputError: one of them cannot be loaded, or weights are missing; `flag` is named.
    """
    disable_progress_bar()  # one that is gone within a second, in the middle of the program's own
    encoder = _load_model(Wav2Vec2Model, folder, field, dtype=dtype, attn_implementation="sdpa")
    return encoder.to(device), _from_pretrained(Wav2Vec2FeatureExtractor, folder, field)


def _load_model(library_class: type, folder: str | PathLike, field: str, **options) -> nn.Module:
    model, info = _from_pretrained(library_class, folder, field, output_loading_info=True, **options)
    missing = [name for name in info["missing_keys"] if name not in UNUSED_LIBRARY_WEIGHTS]
    if missing or info["mismatched_keys"]:
        found = f"{len(missing)} weights are missing, {len(info['mismatched_keys'])} misshapen"
        raise InputError(f"{found}: {', '.join(map(str, sorted(missing)[:4]))}", field, folder)
    return model.eval()


def _from_pretrained(library_class: type, folder: str | PathLike, field: str, **options):
    if not Path(folder).is_dir():  # the libraries take a missing folder for the name of a model on a hub
        raise InputError("no such folder", field, folder)
    try:
        return library_class.from_pretrained(folder, local_files_only=True, **options)
    except (OSError, ValueError, RuntimeError, KeyError, pickle.UnpicklingError, SafetensorError) as error:
        raise InputError(f"holds no {library_class.__name__} ({first_line(error)})", field, folder) from error


# ---- writing -------------------------------------------------------------------------------------------------------


def save_networks(
    folder: str | PathLike,
    reference_net: ReferenceNet,
    denoising_unet: DenoisingUNet,
    v_kps_guider: VKpsGuider,
    audio_projection: AudioProjection,
    dtype: torch.dtype | None = None,
    suffix: str = ".safetensors",
    weights: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Writes the five released files and the configuration files into a folder of the released layout.

    Args:
        folder: made if missing.
        reference_net, denoising_unet, v_kps_guider, audio_projection: on any device.
        dtype: of floating-point weights in the files; None keeps it.
        suffix: ".safetensors" or ".bin".
        weights: network's name -> state dict to write in place of the network's own, which may be sharded.
    """
    folder = Path(folder)
    networks = {
        "reference_net": reference_net,
        "denoising_unet": denoising_unet,
        "v_kps_guider": v_kps_guider,
        "audio_projection": audio_projection,
    }
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
        folder / LAYOUT["unet_config_path"]: denoising_unet,
        folder / f"{LAYOUT['v_kps_guider_path']}.json": v_kps_guider,
        folder / f"{LAYOUT['audio_projection_path']}.json": audio_projection,
    }
    for path, network in configs.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        config = {key: value for key, value in network.config.items() if not key.startswith("_")}
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(config, indent=2) + "\n")


def save_frozen_parts(
    folder: str | PathLike,
    vae: AutoencoderKL,
    audio_encoder: Wav2Vec2Model,
    audio_processor: Wav2Vec2FeatureExtractor,
) -> None:
    """Writes image autoencoder and audio encoder into a folder of the released layout."""
    folder = Path(folder)
    vae.save_pretrained(folder / LAYOUT["vae_path"])
    audio_encoder.save_pretrained(folder / LAYOUT["audio_encoder_path"])
    audio_processor.save_pretrained(folder / LAYOUT["audio_encoder_path"])
