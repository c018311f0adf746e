"""Weight files: read without executing anything, and put into networks strictly."""

from vexpress.weights.adapters import Adapter, attach_adapter, base_digest, load_adapter, save_adapter
from vexpress.weights.libraries import (
    SPEECH_ENCODERS,
    load_audio_config,
    load_audio_encoder,
    load_vae,
    save_frozen_parts,
)
from vexpress.weights.networks import (
    MOTION_KEY,
    build_attribute_projection,
    build_networks,
    load_networks,
    save_networks,
)
from vexpress.weights.state_dicts import load_weights, read_state_dict

__all__ = [
    "SPEECH_ENCODERS",
    "MOTION_KEY",
    "Adapter",
    "attach_adapter",
    "base_digest",
    "build_attribute_projection",
    "build_networks",
    "load_adapter",
    "load_audio_config",
    "load_audio_encoder",
    "load_networks",
    "load_vae",
    "load_weights",
    "read_state_dict",
    "save_adapter",
    "save_frozen_parts",
    "save_networks",
]
