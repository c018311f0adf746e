"""All that the denoising UNet is told of a video beside its noisy latents: keypoints, reference and audio, as one."""

from dataclasses import dataclass, replace

from torch import Tensor

from vexpress.models.attention import KeyValue


@dataclass(frozen=True)
class Conditions:
    """What a video is made from, ready for every denoising step, and how strongly it counts.

    Attributes:
        kps_features: (b d f h w), from the V-Kps guider, added after the first convolution; None drops them.
        reference_kv: block path -> keys and values of the reference tokens, batch b (one per video); None drops them.
        audio_kv: block path -> keys and values of the audio tokens, batch (b f) (one per frame); None drops them.
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

    def without(self, *names: str) -> "Conditions":
        """The same with some of kps_features, reference_kv and audio_kv dropped."""
        return replace(self, **dict.fromkeys(names))
