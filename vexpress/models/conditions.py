"""All that the denoising UNet is told of a video beside its noisy latents: keypoints, reference and audio, as one."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from vexpress.models.attention import KeyValue

PARTIAL = ("audio", "attributes")
"""What audio_kv is made of."""


@dataclass(frozen=True)
class Conditions:
    """What a video is made from, ready for every denoising step, and how strongly it counts.

    Attributes:
        kps_features: (b d f h w), from the V-Kps guider, added after the first convolution; None drops them.
        reference_kv: block path -> keys and values of the reference tokens, batch b (one per video); None drops them.
        audio_kv: block path -> keys and values of the audio tokens, and behind them of the attributes', batch (b f)
            (one per frame); None drops them.
        partial_kv: "audio" or "attributes" -> what audio_kv is where only these are dropped; empty where there are no
            attributes.
        reference_keep: (b f), 0 for frames whose reference is dropped, 1 for the others; None keeps all.
        audio_keep: (b f), 0 for frames whose audio is dropped; None keeps all.
        reference_attention_weight: factor on what reference attention adds.
        audio_attention_weight: factor on what audio attention adds.
    """

    kps_features: Tensor | None = None
    reference_kv: dict[str, KeyValue] | None = None
    audio_kv: dict[str, KeyValue] | None = None
    reference_keep: Tensor | None = None
    audio_keep: Tensor | None = None
    reference_attention_weight: float = 1.0
    audio_attention_weight: float = 1.0
    partial_kv: Mapping[str, dict[str, KeyValue]] = field(default_factory=dict)

    def without(self, *names: str) -> "Conditions":
        """The same with some of kps_features, reference_kv, audio_kv, or with "audio" or "attributes" dropped."""
        partial = next((name for name in names if name in PARTIAL), None)
        dropped = dict.fromkeys(name for name in names if name != partial)
        if partial:
            dropped["audio_kv"] = self.partial_kv.get(partial)
        return replace(self, **dropped)
