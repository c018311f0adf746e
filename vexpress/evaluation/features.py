"""Networks whose features stand for pictures (FID) and clips (FVD), from files that the user names.

Both are TorchScript, with the interfaces of the released detectors: Inception v3 of the StyleGAN releases and I3D of
the StyleGAN-V release. A file may hold an extra file `evaluation.json` with what differs from these: {"kind": "...",
"frame_px": 32} (of the network for clips; absent means 224). The demo pack's small networks do.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vexpress.errors import InputError, first_line

EXTRA_FILE = "evaluation.json"
CLIP_FRAMES = 16
I3D_FRAME_PX = 224
FRAMES_PER_BATCH, CLIPS_PER_BATCH = 32, 4
HASH_LETTERS = 12


@dataclass(frozen=True)
class NetworkFacts:
    """What a report says about the network behind a figure.

    Attributes:
        metric: what it is for.
        file: name of the file or folder.
        sha256: the first letters of its hash; of a folder, that of its files' hashes.
        kind: what the file says it is, or which released interface is assumed.
        resize: how pictures are brought to its input.
    """

    metric: str
    file: str
    sha256: str
    kind: str
    resize: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def hash_prefix(path: str | PathLike) -> str:
    """Computes the first letters of the SHA-256 of a file, or of the hashes of all ONNX files of a folder."""
    path = Path(path)
    if path.is_dir():
        parts = [hash_prefix(file) for file in sorted(path.glob("*.onnx"))]
        return hashlib.sha256("".join(parts).encode()).hexdigest()[:HASH_LETTERS]
    return hashlib.sha256(path.read_bytes()).hexdigest()[:HASH_LETTERS]


class FrameFeatures:
    """Features of single pictures, for FID.

    Args:
        path: TorchScript: (n 3 H W) uint8 RGB in 0..255, return_features=True -> (n d); resizes by itself.
        device: where to run.

    Raises:
        InputError: missing, or not such a network.
    """

    def __init__(self, path: str | PathLike, device: torch.device | str = "cpu"):
        self.network, extra = _load_script(path, "fid_network", device)
        self.device = torch.device(device)
        kind = extra.get("kind", "Inception v3 interface")
        resize = extra.get("resize", "by the network itself")
        self.facts = NetworkFacts("FID", Path(path).name, hash_prefix(path), kind, resize)

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """(n H W 3) uint8 RGB -> (n d) float64."""
        parts = rearrange(torch.from_numpy(np.ascontiguousarray(frames)), "n h w c -> n c h w").split(FRAMES_PER_BATCH)
        return np.concatenate([_run(self.network, part.to(self.device), "fid_network", {}) for part in parts])


class ClipFeatures:
    """Features of clips of 16 consecutive frames, for FVD.

    Args:
        path: TorchScript: (n 3 16 224 224) in -1..1, rescale=False, resize=False, return_features=True -> (n d).
        device: where to run.

    Raises:
        InputError: missing, or not such a network.
    """

    def __init__(self, path: str | PathLike, device: torch.device | str = "cpu"):
        self.network, extra = _load_script(path, "fvd_network", device)
        self.device = torch.device(device)
        self.frame_px = extra.get("frame_px", I3D_FRAME_PX)
        if not isinstance(self.frame_px, int) or not 8 <= self.frame_px <= 1024:
            raise InputError(
                f"its {EXTRA_FILE} says frame_px {self.frame_px!r}, needed is 8..1024", "fvd_network", path
            )
        kind = extra.get("kind", "I3D interface")
        resize = f"shorter side to {self.frame_px} px (bilinear), then its middle"
        self.facts = NetworkFacts("FVD", Path(path).name, hash_prefix(path), kind, resize)

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """(f H W 3) uint8 RGB -> (f // 16, d) float64, of clips that follow each other; the rest is left out."""
        num_clips = len(frames) // CLIP_FRAMES
        small = self._resized(torch.from_numpy(np.ascontiguousarray(frames[: num_clips * CLIP_FRAMES])))
        clips = rearrange(small, "(n f) c h w -> n c f h w", f=CLIP_FRAMES) / 127.5 - 1
        options = {"rescale": False, "resize": False}
        parts = [
            _run(self.network, part.to(self.device), "fvd_network", options) for part in clips.split(CLIPS_PER_BATCH)
        ]
        return np.concatenate(parts)

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


def _load_script(path: str | PathLike, field: str, device: torch.device | str) -> tuple[torch.jit.ScriptModule, dict]:
    """The network and what its extra file says."""
    if not Path(path).is_file():
        raise InputError("no such file; give a TorchScript network, see docs/evaluation.md", field, path)
    extra = {EXTRA_FILE: ""}
    try:
        network = torch.jit.load(str(path), map_location=device, _extra_files=extra).eval()
        facts = json.loads(extra[EXTRA_FILE] or "{}")
    except (RuntimeError, ValueError) as error:
        raise InputError(f"is no TorchScript network, or damaged ({first_line(error)})", field, path) from error
    if not isinstance(facts, dict):
        raise InputError(f"its {EXTRA_FILE} is no JSON object", field, path)
    return network, facts


@torch.no_grad()
def _run(network: torch.jit.ScriptModule, images: Tensor, field: str, options: dict[str, bool]) -> np.ndarray:
    try:
        features = network(images, return_features=True, **options)
    except (RuntimeError, TypeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        problem = first_line(RuntimeError(str(error).strip().splitlines()[-1]))
        raise InputError(
            f"the network does not take {tuple(images.shape)} ({problem}); see docs/evaluation.md", field
        ) from error
    return features.flatten(1).double().cpu().numpy()
