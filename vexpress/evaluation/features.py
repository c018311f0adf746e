"""Features that stand for pictures (FID) and clips (FVD), computed by networks from files.

A file is `.safetensors` of our own small networks (`metric_networks`), or TorchScript with the interface of the
released detectors: Inception v3 of the StyleGAN releases and I3D of the StyleGAN-V release. TorchScript may hold an
extra file `evaluation.json` with what differs from these: {"kind": "...", "frame_px": 32} (of the network for clips;
absent means 224).
"""

from collections.abc import Collection
from os import PathLike
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vexpress.errors import InputError, first_line
from vexpress.evaluation.metric_networks import CLIP_FRAMES, MAX_PX, ClipNetwork, FrameNetwork, load_metric_network
from vexpress.network_files import EXTRA_FILE, NetworkFacts, hash_prefix, is_script, load_script

I3D_FRAME_PX = 224
FRAMES_PER_BATCH, CLIPS_PER_BATCH = 32, 4


class FrameFeatures:
    """Features of single pictures, for FID.

    Args:
        path: a `FrameNetwork`, or TorchScript: (n 3 H W) uint8 RGB in 0..255, return_features=True -> (n d), which
            resizes by itself.
        device: where to run.
        trusted: SHA-256 of TorchScript files that are loaded without a warning.

    Raises:
        InputError: missing, or not such a network.
    """

    def __init__(self, path: str | PathLike, device: torch.device | str = "cpu", trusted: Collection[str] = ()):
        path, field = Path(path), "fid_network"
        self.device, self._options = torch.device(device), {}
        resize = "by the network itself"
        if is_script(path):
            self.network, extra = load_script(path, field, device, trusted)
            self._options = {"return_features": True}
            kind, resize = str(extra.get("kind", "Inception v3 interface")), str(extra.get("resize", resize))
        else:
            self.network, kind = load_metric_network(path, FrameNetwork, field, device)
            resize = f"{self.network.frame_px} px (bilinear, antialiased), {resize}"
        self.facts = NetworkFacts("FID", path.name, hash_prefix(path), kind, resize)

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """(n H W 3) uint8 RGB -> (n d) float64."""
        pictures = rearrange(torch.from_numpy(np.ascontiguousarray(frames)), "n h w c -> n c h w")
        parts = pictures.split(FRAMES_PER_BATCH)
        return np.concatenate(
            [_run(self.network, part.to(self.device), "fid_network", self._options) for part in parts]
        )


class ClipFeatures:
    """Features of clips of 16 consecutive frames, for FVD.

    Args:
        path: a `ClipNetwork`, or TorchScript: (n 3 16 224 224) in -1..1, rescale=False, resize=False,
            return_features=True -> (n d).
        device: where to run.
        trusted: SHA-256 of TorchScript files that are loaded without a warning.

    Raises:
        InputError: missing, or not such a network.
    """

    def __init__(self, path: str | PathLike, device: torch.device | str = "cpu", trusted: Collection[str] = ()):
        path, field = Path(path), "fvd_network"
        self.device, self._options = torch.device(device), {}
        if is_script(path):
            self.network, extra = load_script(path, field, device, trusted)
            self._options = {"return_features": True, "rescale": False, "resize": False}
            kind, self.frame_px = str(extra.get("kind", "I3D interface")), extra.get("frame_px", I3D_FRAME_PX)
        else:
            self.network, kind = load_metric_network(path, ClipNetwork, field, device)
            self.frame_px = self.network.frame_px
        if type(self.frame_px) is not int or not 8 <= self.frame_px <= MAX_PX:
            raise InputError(f"its {EXTRA_FILE} says frame_px {self.frame_px!r}, allowed is 8..{MAX_PX}", field, path)
        resize = f"shorter side to {self.frame_px} px (bilinear), then its middle"
        self.facts = NetworkFacts("FVD", path.name, hash_prefix(path), kind, resize)

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """(f H W 3) uint8 RGB -> (f // 16, d) float64, of clips that follow each other; the rest is left out."""
        num_clips = len(frames) // CLIP_FRAMES
        small = self._resized(torch.from_numpy(np.ascontiguousarray(frames[: num_clips * CLIP_FRAMES])))
        clips = rearrange(small, "(n f) c h w -> n c f h w", f=CLIP_FRAMES) / 127.5 - 1
        parts = clips.split(CLIPS_PER_BATCH)
        return np.concatenate(
            [_run(self.network, part.to(self.device), "fvd_network", self._options) for part in parts]
        )

    def _resized(self, frames: Tensor) -> Tensor:
        """(n H W 3) uint8 -> (n 3 px px) float32 in 0..255, part by part, since floats are large."""
        height, width = frames.shape[1:3]
        scale = self.frame_px / min(height, width)
        size = (max(self.frame_px, round(height * scale)), max(self.frame_px, round(width * scale)))
        top, left = ((side - self.frame_px) // 2 for side in size)
        parts = []
        for part in frames.split(FRAMES_PER_BATCH):
            pixels = F.interpolate(rearrange(part, "n h w c -> n c h w").float(), size, mode="bilinear")
            parts.append(pixels[:, :, top : top + self.frame_px, left : left + self.frame_px])
        return torch.cat(parts)


@torch.no_grad()
def _run(network: nn.Module, images: Tensor, field: str, options: dict[str, bool]) -> np.ndarray:
    """(n ...) -> (n d) float64.

    Raises:
        InputError: the network does not take the images, or gives something else.
    """
    try:
        features = network(images, **options)
        if not isinstance(features, Tensor) or features.ndim < 2 or len(features) != len(images):
            raise TypeError(f"it gives {getattr(features, 'shape', type(features).__name__)} for {len(images)} inputs")
        return features.flatten(1).double().cpu().numpy()
    except Exception as error:  # TorchScript raises what its author wants
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        lines = str(error).strip().splitlines()
        problem = f"the network does not take {tuple(images.shape)} ({lines[-1] if lines else first_line(error)})"
        raise InputError(f"{problem}; see docs/evaluation.md", field) from error
