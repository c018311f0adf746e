"""Where the weights come from before training. Each mapping reports which keys it loaded, missed and did not use."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vexpress.errors import InputError
from vexpress.model_folder import ModelPaths
from vexpress.models import DenoisingUNet
from vexpress.training.config import TrainConfig
from vexpress.training.stages import STAGES, TrainingNetworks
from vexpress.weights import (
    MOTION_KEY,
    build_attribute_projection,
    build_networks,
    load_audio_config,
    load_networks,
    read_state_dict,
)

logger = logging.getLogger(__name__)

UNET_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
SELF_TO_REFERENCE = ((".attn1.", ".attn1_5."), (".norm1.", ".norm1_5."))


@dataclass(frozen=True)
class Report:
    """Keys of one network after a mapping.

    Attributes:
        loaded: parameters that got a value.
        missing: parameters that kept the value they had.
        unused: keys of the file that no parameter took.
    """

    loaded: list[str]
    missing: list[str]
    unused: list[str]

    def log(self, what: str) -> None:
        logger.info("%s: %d loaded, %d missing, %d unused", what, len(self.loaded), len(self.missing), len(self.unused))
        for kind, names in (("missing", self.missing), ("unused", self.unused)):
            if names:
                logger.info("%s, %s: %s%s", what, kind, ", ".join(names[:4]), ", ..." * (len(names) > 4))


def load_mapped(network: nn.Module, weights: Mapping[str, Tensor], what: str) -> Report:
    """Copies the weights that have a parameter of their name, and reports the rest.

    Raises:
        InputError: a shape differs, or no key fits at all.
    """
    own = network.state_dict()
    loaded = [name for name in own if name in weights]
    if not loaded:
        raise InputError(f"{what}: none of its {len(weights)} keys belongs to {type(network).__name__}")
    for name in loaded:
        if own[name].shape != weights[name].shape:
            shapes = f"{tuple(weights[name].shape)}, needed {tuple(own[name].shape)}"
            raise InputError(f"{what}: {name} has shape {shapes}; is it of another model size?")
        own[name].copy_(weights[name])
    report = Report(
        loaded, [name for name in own if name not in weights], [name for name in weights if name not in own]
    )
    report.log(what)
    return report


def with_reference_attention(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adds reference attention as a copy of self attention: attn1, norm1 -> attn1_5, norm1_5."""
    copies = {}
    for old, new in SELF_TO_REFERENCE:
        copies |= {
            name.replace(old, new): tensor
            for name, tensor in weights.items()
            if ".transformer_blocks." in name and old in name
        }
    return {**copies, **weights}


def without_prefix(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Removes the `module.` that data-parallel training puts before names."""
    return {name.removeprefix("module."): tensor for name, tensor in weights.items()}


@torch.no_grad()
def load_unet_folder(networks: TrainingNetworks, folder: Path) -> list[Report]:
    """Starts both UNets from a diffusers UNet of the Stable Diffusion 1.5 family.

    Raises:
        InputError: no weights there, or of another size.
    """
    path = next((folder / name for name in UNET_FILES if (folder / name).is_file()), None)
    if path is None:
        raise InputError(f"init.path {folder}: holds none of {', '.join(UNET_FILES)}")
    weights = read_state_dict(path)
    return [
        load_mapped(networks.reference_net, weights, f"ReferenceNet from {path}"),
        load_mapped(networks.denoising_unet, with_reference_attention(weights), f"DenoisingUNet from {path}"),
    ]


@torch.no_grad()
def load_animate_anyone(networks: TrainingNetworks, folder: Path) -> list[Report]:
    """Starts from Moore-AnimateAnyone: reference_unet.pth, denoising_unet.pth and pose_guider.pth.

    Raises:
        InputError: a file is missing, or of another size.
    """
    reports = []
    for name, network in (
        ("reference_unet.pth", networks.reference_net),
        ("denoising_unet.pth", networks.denoising_unet),
        ("pose_guider.pth", networks.v_kps_guider),
    ):
        weights = without_prefix(read_state_dict(folder / name))
        if name == "denoising_unet.pth":
            weights = with_reference_attention(weights)
        reports.append(load_mapped(network, weights, f"{type(network).__name__} from {folder / name}"))
    return reports


@torch.no_grad()
def load_animatediff_motion(unet: DenoisingUNet, path: Path) -> Report:
    """Starts the motion modules from an AnimateDiff checkpoint; its position tables, of any length, are left out.

    Raises:
        InputError: not such a checkpoint, or of another size.
    """
    weights = without_prefix(read_state_dict(path))
    weights = {name: tensor for name, tensor in weights.items() if MOTION_KEY in name and not name.endswith(".pe")}
    return load_mapped(unet, weights, f"motion modules from {path}")


def model_folder_of(folder: str | Path, field: str) -> ModelPaths:
    """Files of the networks in a model folder.

    Raises:
        InputError: one is missing; the configuration's `field` is named.
    """
    try:
        return ModelPaths.from_model_dir(folder, networks_only=True)
    except InputError as error:
        missing = error.problem.split(";")[0]
        problem = f"is no model folder ({missing}); run the stage before, or name its export"
        raise InputError(problem, field, folder) from error


def build_training_networks(config: TrainConfig) -> TrainingNetworks:
    """Builds the networks and gives them the weights that a stage starts from, in fp32.

    Raises:
        InputError: a file is missing or does not fit, or the networks are too large for this machine.
    """
    init, stage = config.init, STAGES[config.train_stage]
    if init.motion_module_path and stage.has_trained_motion:
        raise InputError(
            f"would replace what the stage before {config.train_stage} has trained: unset it",
            "init.motion_module_path",
            init.motion_module_path,
        )
    torch.manual_seed(config.seed)  # for what no file gives
    if init.source == "stage":
        networks = TrainingNetworks(**load_networks(model_folder_of(init.path, "init.path")))
    else:
        networks = _build_new(config)
        if init.source == "unet":
            load_unet_folder(networks, Path(init.path or Path(config.base_model_path) / "unet"))
        elif init.source == "animate_anyone":
            load_animate_anyone(networks, Path(init.path))
        networks.denoising_unet.silence_motion()
    if networks.attribute_projection is None and config.model.attribute_projection is not None:
        width = networks.denoising_unet.config.cross_attention_dim
        sizes = {"output_dim": width, **config.model.attribute_projection}
        networks.attribute_projection = build_attribute_projection(sizes)
    _check_widths(networks)
    if stage.starts_silent or init.source != "stage":
        networks.denoising_unet.silence_audio()
    if init.motion_module_path:
        load_animatediff_motion(networks.denoising_unet, Path(init.motion_module_path))
    if stage.starts_silent:  # again: the checkpoint's modules are not silent
        networks.denoising_unet.silence_motion()
    return networks


def _build_new(config: TrainConfig) -> TrainingNetworks:
    """Networks of the configured sizes, with random weights; the audio projection takes what the encoder makes."""
    unet_config_path = Path(config.model.unet_config_path or Path(config.base_model_path) / "unet" / "config.json")
    audio_projection = config.model.audio_projection
    if Path(config.audio_model_path).is_dir():  # a plan needs none
        audio_config = load_audio_config(config.audio_model_path, "audio_model_path")
        audio_projection = {"embedding_dim": audio_config.hidden_size, **audio_projection}
    sizes = (unet_config_path, config.model.v_kps_guider, audio_projection)
    with torch.device("meta"):  # nothing is allocated: a width may be a million
        num_bytes = sum(p.nbytes for network in build_networks(*sizes).values() for p in network.parameters())
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if num_bytes > memory_bytes:
        raise InputError(
            f"model: networks of these sizes have {num_bytes / 2**30:.0f} GiB of weights, this machine has "
            f"{memory_bytes / 2**30:.0f} GiB of memory; see {unet_config_path}, model.v_kps_guider and "
            "model.audio_projection"
        )
    return TrainingNetworks(**build_networks(*sizes))


def _check_widths(networks: TrainingNetworks) -> None:
    unet, guider, audio = (
        network.config for network in (networks.denoising_unet, networks.v_kps_guider, networks.audio_projection)
    )
    if guider.out_channels != unet.block_out_channels[0]:
        raise InputError(
            f"the UNet's first width is {unet.block_out_channels[0]}",
            "model.v_kps_guider.out_channels",
            guider.out_channels,
        )
    if audio.output_dim != unet.cross_attention_dim:
        raise InputError(
            f"the UNet's cross_attention_dim is {unet.cross_attention_dim}",
            "model.audio_projection.output_dim",
            audio.output_dim,
        )
    attributes = networks.attribute_projection
    if attributes is not None and attributes.config.output_dim != unet.cross_attention_dim:
        raise InputError(
            f"the UNet's cross_attention_dim is {unet.cross_attention_dim}",
            "model.attribute_projection.output_dim",
            attributes.config.output_dim,
        )
    if min(audio.heads, audio.dim_head, audio.depth, audio.num_queries) < 1:
        raise InputError("model.audio_projection: heads, dim_head, depth and num_queries must be at least 1")
