"""Real networks at tiny sizes, weights by rule, and a model folder made of them."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny
from torch import nn
from transformers import AutoConfig, PreTrainedModel, Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from vexpress.diffusion.schedule import build_scheduler
from vexpress.models import AttributeProjection, AudioProjection, DenoisingUNet, ReferenceNet, VKpsGuider
from vexpress.pipeline import VExpressPipeline
from vexpress.weights import save_frozen_parts, save_networks

DATA_DIR = Path(__file__).parent / "data"
SHARED_DIR = Path(__file__).parents[2] / "shared"
CASES = json.loads((DATA_DIR / "parity" / "cases.json").read_text())
UNET_CONFIG = CASES["unet_config"]
NUM_MOTION_HEADS = CASES["motion_config"]["motion_module_kwargs"]["num_attention_heads"]


def fill_by_rule(module: nn.Module) -> nn.Module:
    """Fills a module as the recorded networks were filled: each parameter drawn from a generator seeded by its name."""
    weights = {}
    for name, tensor in module.state_dict().items():
        if name.endswith(".pe") or not tensor.is_floating_point():
            weights[name] = tensor
            continue
        drawn = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(tuple(tensor.shape))
        drawn = drawn.astype(np.float32)
        if tensor.ndim >= 2:
            drawn = drawn / np.sqrt(np.prod(tensor.shape[1:]))
        elif name.endswith("weight"):
            drawn = 1 + 0.1 * drawn
        else:
            drawn = 0.1 * drawn
        weights[name] = torch.from_numpy(np.asarray(drawn, dtype=np.float32))
    module.load_state_dict(weights)
    return module.eval()


def recorded(name: str) -> dict[str, np.ndarray]:
    """One parity case."""
    return dict(np.load(DATA_DIR / "parity" / f"{name}.npz"))


def relative_error(output, expected) -> float:
    """||output - expected|| / ||expected||; shapes must agree."""
    output, expected = torch.as_tensor(output).double(), torch.as_tensor(expected).double()
    assert output.shape == expected.shape
    return float((output - expected).norm() / expected.norm())


def reference_net() -> ReferenceNet:
    return fill_by_rule(ReferenceNet.from_config(UNET_CONFIG))


def denoising_unet(**changes) -> DenoisingUNet:
    return fill_by_rule(
        DenoisingUNet.from_config({**UNET_CONFIG, **changes}, motion_num_attention_heads=NUM_MOTION_HEADS)
    )


def v_kps_guider() -> VKpsGuider:
    return fill_by_rule(VKpsGuider(**CASES["v_kps_guider_config"]))


def audio_projection() -> AudioProjection:
    return fill_by_rule(AudioProjection(**CASES["audio_projection_config"]))


def attribute_projection() -> AttributeProjection:
    return fill_by_rule(AttributeProjection(dim=16, output_dim=UNET_CONFIG["cross_attention_dim"]))


def vae() -> AutoencoderKL:
    return fill_by_rule(AutoencoderKL(**CASES["vae_config"]))


def autoencoder_dc(**registered) -> AutoencoderDC:
    """Four stages of deep compression, nothing computed at full size; `registered` is put into its configuration."""
    sizes = {f"{part}_block_out_channels": (8, 8, 16, 16) for part in ("encoder", "decoder")}
    sizes |= {f"{part}_layers_per_block": (0, 1, 1, 1) for part in ("encoder", "decoder")}
    sizes |= {f"{part}_qkv_multiscales": ((),) * 4 for part in ("encoder", "decoder")}
    shortcuts = {"encoder_out_shortcut": False, "decoder_in_shortcut": False}
    vae = fill_by_rule(
        AutoencoderDC(
            latent_channels=4, encoder_block_types="ResBlock", decoder_block_types="ResBlock", **sizes, **shortcuts
        )
    )
    vae.register_to_config(**registered)
    return vae.eval()


def autoencoder_tiny(num_stages: int = 4, latent_channels: int = 4, **registered) -> AutoencoderTiny:
    """One that makes pictures 2 ** (num_stages - 1) times smaller; `registered` is kept in its configuration."""
    names = ("encoder_block_out_channels", "decoder_block_out_channels", "num_encoder_blocks", "num_decoder_blocks")
    sizes = dict(zip(names, [(8,) * num_stages] * 2 + [(1,) * num_stages] * 2))
    vae = fill_by_rule(AutoencoderTiny(latent_channels=latent_channels, **sizes))
    vae.register_to_config(**registered)
    return vae


def audio_encoder() -> Wav2Vec2Model:
    return fill_by_rule(Wav2Vec2Model(Wav2Vec2Config(**CASES["wav2vec2_config"])))


def audio_processor() -> Wav2Vec2FeatureExtractor:
    return Wav2Vec2FeatureExtractor(
        feature_size=1, sampling_rate=16000, padding_value=0.0, do_normalize=True, return_attention_mask=False
    )


ENCODERS = ("wav2vec2", "hubert", "wavlm", "whisper")
WHISPER_CONFIG = {
    "d_model": CASES["wav2vec2_config"]["hidden_size"], "encoder_layers": 2, "encoder_attention_heads": 4,
    "encoder_ffn_dim": 32, "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 32,
    "num_mel_bins": 16, "max_source_positions": 100, "vocab_size": 32, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip


def speech_encoder(model_type: str, **changes) -> tuple[PreTrainedModel, object]:
    """An encoder of a type, as wide as the projection takes, with its extractor; Whisper's window is 2 s."""
    from transformers import HubertModel, WavLMModel, WhisperFeatureExtractor  # a second, which few tests need

    from vexpress.models.whisper_encoder import WhisperSpeechEncoder

    if model_type == "whisper":
        config = AutoConfig.for_model("whisper", **WHISPER_CONFIG, **changes)
        return fill_by_rule(WhisperSpeechEncoder(config)), WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    network = {"wav2vec2": Wav2Vec2Model, "hubert": HubertModel, "wavlm": WavLMModel}[model_type]
    config = AutoConfig.for_model(model_type, **CASES["wav2vec2_config"], **changes)
    processor = audio_processor()
    processor.do_normalize = model_type != "wavlm"  # as in microsoft/wavlm-base
    return fill_by_rule(network(config)), processor


def pipeline(**parts) -> VExpressPipeline:
    parts = {"audio_encoder": audio_encoder(), "audio_processor": audio_processor(), **parts}
    pipe = VExpressPipeline(
        vae=vae(),
        reference_net=reference_net(),
        denoising_unet=denoising_unet(),
        v_kps_guider=v_kps_guider(),
        audio_projection=audio_projection(),
        scheduler=build_scheduler("ddim"),
        **parts,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write_model_dir(folder: Path, suffix: str = ".safetensors") -> Path:
    """Writes a model folder in the released layout, without face models."""
    save_networks(folder, reference_net(), denoising_unet(), v_kps_guider(), audio_projection(), suffix=suffix)
    save_frozen_parts(folder, vae(), audio_encoder(), audio_processor())
    return folder
