"""Networks with random weights, of the released sizes or tiny."""

import logging

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from vexpress.benchmarks.settings import NetworkSettings
from vexpress.devices import resolve_device, resolve_dtype
from vexpress.diffusion.schedule import build_scheduler
from vexpress.media.audio import WAV2VEC2_RATE_HZ
from vexpress.models import AudioProjection, DenoisingUNet, ReferenceNet, VKpsGuider
from vexpress.models.attention import sinusoidal_positions
from vexpress.pipeline import VExpressPipeline

logger = logging.getLogger(__name__)

NETWORK_CLASSES = {
    "reference_net": ReferenceNet,
    "denoising_unet": DenoisingUNet,
    "v_kps_guider": VKpsGuider,
    "audio_projection": AudioProjection,
}
UNET = {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8}
TINY_UNET = {"block_out_channels": (32, 64, 64, 64), "cross_attention_dim": 32, "norm_num_groups": 8}
VAE_BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
CONFIGS = {
    "released": {
        "reference_net": UNET,
        "denoising_unet": UNET,
        "v_kps_guider": {},  # these defaults are the released sizes
        "audio_projection": {},
        "vae": {**VAE_BLOCKS, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},  # sd-vae-ft-mse
        "audio_encoder": {},  # wav2vec2-base-960h
    },
    "tiny": {
        "reference_net": TINY_UNET,
        "denoising_unet": {**TINY_UNET, "motion_norm_num_groups": 8},
        "v_kps_guider": {"out_channels": 32, "block_out_channels": (8, 16, 24, 32)},
        "audio_projection": {"dim": 32, "depth": 2, "dim_head": 8, "heads": 4, "embedding_dim": 32, "output_dim": 32},
        "vae": {**VAE_BLOCKS, "block_out_channels": (8, 16, 16, 16), "norm_num_groups": 4},
        "audio_encoder": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "conv_dim": (16,) * 7},
    },
}
"""Size -> part of the pipeline -> what differs from the part's defaults."""


def build_network(
    part: str, size: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Builds a network with random weights that keep activations at about unit scale.

    Args:
        part: key of `CONFIGS[size]`.
        size: key of `CONFIGS`.
        device: where it works.
        dtype: of its weights.
    """
    config = CONFIGS[size][part]
    with torch.device("meta"):  # without weights: the constructors' own initialisation takes minutes
        if part == "audio_encoder":
            network = Wav2Vec2Model(Wav2Vec2Config(**config))
        else:
            network = {**NETWORK_CLASSES, "vae": AutoencoderKL}[part].from_config(config)
    network = network.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    for name, tensor in network.state_dict().items():
        if name.endswith(".pe"):
            tensor.copy_(sinusoidal_positions(*tensor.shape[1:]))
        elif tensor.ndim > 1:
            tensor.normal_(std=tensor[0].numel() ** -0.5)
        else:
            tensor.normal_(mean=float(name.endswith("weight")), std=0.1)
    return network


def build_pipeline(size: str, device: torch.device | str, dtype: torch.dtype) -> VExpressPipeline:
    """Builds a pipeline with random weights, without progress bars."""
    processor = Wav2Vec2FeatureExtractor(sampling_rate=WAV2VEC2_RATE_HZ, do_normalize=True, return_attention_mask=False)
    pipeline = VExpressPipeline(
        **{part: build_network(part, size, device, dtype) for part in CONFIGS[size]},
        audio_processor=processor,
        scheduler=build_scheduler(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pick_machine(settings: NetworkSettings) -> tuple[torch.device, torch.dtype]:
    """Device and number type that the settings ask for.

    Raises:
        InputError: the device is not there.
    """
    device = resolve_device(settings.device, settings.gpu_id)
    dtype = resolve_dtype(settings.dtype, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    logger.info("%s (%s), %s, torch %s", device, name, dtype, torch.__version__)
    return device, dtype
