"""Conditions of windows, made when they are asked for, so that none are held for the whole of a clip."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor

from vexpress.models import Conditions, DenoisingUNet

MAX_KPS_BYTES = 2**28
"""V-Kps features kept; at 512x512 px one frame has 2.6 MB in half precision."""


class KpsFeatures:
    """V-Kps features of frames, each kind of keypoints encoded once as long as it is kept.

    Args:
        encode: keypoints (u 3 2) px -> features (u d h w).
        keeps_latest: those of the latest call are kept, which is right for windows that come one after the other.
            Otherwise the first `MAX_KPS_BYTES` stay, which is right where all frames come round again at every step.
    """

    def __init__(self, encode: Callable[[Tensor], Tensor], keeps_latest: bool = False):
        self._encode, self._keeps_latest = encode, keeps_latest
        self._kept: dict[bytes, Tensor] = {}

    def __call__(self, kps: Tensor) -> Tensor:
        """Keypoints (n 3 2) px -> features (n d h w)."""
        names = [points.numpy().tobytes() for points in kps]
        new = {name: points for name, points in zip(names, kps) if name not in self._kept}  # a still head has but one
        features = dict(self._kept)
        if new:
            features |= zip(new, self._encode(torch.stack(list(new.values()))))
        if self._keeps_latest:
            self._kept = {name: kept for name, kept in self._kept.items() if name in names}
        for name in new:
            if self._keeps_latest or (len(self._kept) + 1) * features[name].nbytes <= MAX_KPS_BYTES:
                self._kept[name] = features[name].clone()  # alone, since a view would hold its whole batch
        return torch.stack([features[name] for name in names])


class WindowConditions:
    """What the denoising UNet is told of windows.

    Audio tokens of a model that knows attributes end with those of the attributes.

    Args:
        unet: projects audio tokens to keys and values.
        constant: what all windows have in common: the reference, and the weights.
        kps_features: keypoints -> features.
        guidance: kind of guidance, which decides what is made beside.
        unknown: attribute tokens (n d) of a frame of which nothing is known; None for a model without attributes.
    """

    def __init__(
        self,
        unet: DenoisingUNet,
        constant: Conditions,
        kps_features: KpsFeatures,
        guidance: str = "all",
        unknown: Tensor | None = None,
    ):
        self._unet, self._constant, self._kps_features = unet, constant, kps_features
        self._guidance, self._unknown = guidance, unknown

    def __call__(self, kps: Tensor, audio_tokens: Tensor) -> Conditions:
        """Conditions of k windows: keypoints (k f 3 2) and audio tokens (k f m d), which are moved to the network."""
        features = self._kps_features(kps.flatten(0, 1))
        tokens = audio_tokens.to(features.device)
        partial = {}
        if self._unknown is not None and self._guidance != "all":
            partial[self._guidance] = self._unet.prepare_conditions(audio_tokens=self._without(tokens)).audio_kv
        return replace(
            self._constant,
            kps_features=rearrange(features, "(k f) d h w -> k d f h w", k=len(kps)),
            audio_kv=self._unet.prepare_conditions(audio_tokens=tokens).audio_kv,
            partial_kv=partial,
        )

    def _without(self, tokens: Tensor) -> Tensor:
        """Tokens (k f m d) without the audio, as in training: zeros; or without attributes: those of the unknown."""
        num_audio = tokens.shape[2] - len(self._unknown)
        audio, attributes = tokens[:, :, :num_audio], tokens[:, :, num_audio:]
        parts = [torch.zeros_like(audio), attributes]
        if self._guidance == "attributes":
            parts = [audio, self._unknown.to(attributes).expand_as(attributes)]
        return torch.cat(parts, dim=2)

    def of_clip(self, kps: Tensor, audio_tokens: Tensor) -> Callable[[Sequence[list[int]]], Conditions]:
        """Conditions by frame numbers, for a clip's keypoints (f 3 2) and audio tokens (1 f m d)."""
        return lambda windows: self(
            torch.stack([kps[window] for window in windows]), torch.stack([audio_tokens[0, w] for w in windows])
        )
