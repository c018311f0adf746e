"""Small networks of our own for FID and FVD: weights in .safetensors, sizes in the file's metadata.

They stand in the place of Inception v3 and I3D where figures compare videos of one narrow kind with one another, such
as the demo pack's drawn faces.
"""

import json
from os import PathLike
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vexpress.errors import InputError, first_line
from vexpress.files import in_one_order, replacing
from vexpress.network_files import give_weights

CLIP_FRAMES = 16
MAX_PX, MAX_WIDTH, MAX_LAYERS = 1024, 4096, 8


def _block(dimensions: int, width_in: int, width_out: int, kernel, stride, padding) -> nn.Sequential:
    conv, norm = {2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}[dimensions]
    return nn.Sequential(conv(width_in, width_out, kernel, stride, padding, bias=False), norm(width_out), nn.ReLU())


class FrameNetwork(nn.Module):
    """Pictures (n 3 H W) uint8 -> features (n d).

    Args:
        frame_px: side to which pictures are resized.
        widths: channels of the layers, each of which halves the side.
        num_features: d.
    """

    def __init__(self, frame_px: int = 96, widths: tuple[int, ...] = (16, 32, 48, 64, 96), num_features: int = 64):
        super().__init__()
        self.sizes = {"frame_px": frame_px, "widths": widths, "num_features": num_features}
        self.frame_px = frame_px
        self.layers = nn.Sequential(*(_block(2, a, b, 3, 2, 1) for a, b in zip((3, *widths), widths)))
        self.features = nn.Linear(widths[-1] * (frame_px // 2 ** len(widths)) ** 2, num_features)

    def forward(self, images: Tensor) -> Tensor:
        side = [self.frame_px, self.frame_px]
        pixels = F.interpolate(images.float(), side, mode="bilinear", align_corners=False, antialias=True)
        return self.features(self.layers(pixels / 127.5 - 1).flatten(1))


class ClipNetwork(nn.Module):
    """Clips (n 3 16 px px) in -1..1 -> features (n d).

    Args:
        frame_px: px.
        widths: channels of the layers, each of which halves the side.
        num_features: d.
    """

    def __init__(self, frame_px: int = 48, widths: tuple[int, ...] = (12, 24, 48, 64), num_features: int = 64):
        super().__init__()
        self.sizes = {"frame_px": frame_px, "widths": widths, "num_features": num_features}
        self.frame_px = frame_px
        layers = []
        for a, b in zip((3, *widths), widths):  # in space, then in time
            layers += [_block(3, a, b, (1, 3, 3), (1, 2, 2), (0, 1, 1)), _block(3, b, b, (3, 1, 1), 1, (1, 0, 0))]
        self.layers = nn.Sequential(*layers)
        self.mix = _block(3, widths[-1], 16, 1, 1, 0)
        self.features = nn.Linear(16 * CLIP_FRAMES * (frame_px // 2 ** len(widths)) ** 2, num_features)

    def forward(self, clips: Tensor) -> Tensor:
        return self.features(self.mix(self.layers(clips)).flatten(1))


def save_metric_network(path: str | PathLike, network: FrameNetwork | ClipNetwork, kind: str) -> None:
    """Writes `.safetensors`; `kind` says for reports what the network is."""
    facts = {"network": type(network).__name__, "sizes": json.dumps(network.sizes), "kind": kind}
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    with replacing(path) as temporary:
        temporary.write_bytes(in_one_order(safetensors.torch.save(weights, facts)))


def load_metric_network(
    path: Path, network_class: type[nn.Module], field: str, device: torch.device | str = "cpu"
) -> tuple[nn.Module, str]:
    """Reads a FrameNetwork or ClipNetwork; returns it in evaluation mode, and its kind in words.

    Raises:
        InputError: missing, damaged, or another network; names `field`.
    """
    if not path.is_file():
        raise InputError("no such file; give a network of features, see docs/evaluation.md", field, path)
    try:
        with safetensors.safe_open(path, "pt") as file:
            facts = file.metadata() or {}
        if facts.get("network") != network_class.__name__:
            raise ValueError(f"it says that it is {facts.get('network')!r}")
        with torch.device("meta"):
            network = network_class(**_checked_sizes(json.loads(facts.get("sizes", ""))))
    except Exception as error:  # safetensors has an error of its own, and JSON can be nested too deeply
        problem = f"is no {network_class.__name__}, or damaged ({first_line(error)[:300]})"
        raise InputError(problem, field, path) from error
    return give_weights(network, path, field, device), facts.get("kind", "unknown")


def _checked_sizes(sizes: dict) -> dict:
    """The arguments of a network; raises a ValueError, TypeError or KeyError for others."""
    frame_px, widths, num_features = sizes["frame_px"], tuple(sizes["widths"]), sizes["num_features"]
    if not all(type(size) is int and size >= 1 for size in (frame_px, *widths, num_features)):
        raise ValueError("sizes must be whole numbers of 1 or more")
    if not (1 <= len(widths) <= MAX_LAYERS and 2 ** len(widths) <= frame_px <= MAX_PX):
        raise ValueError(f"{len(widths)} layers at {frame_px} px; allowed are {MAX_LAYERS} layers at up to {MAX_PX} px")
    if max(*widths, num_features) > MAX_WIDTH:
        raise ValueError(f"widths are at most {MAX_WIDTH}")
    return {"frame_px": frame_px, "widths": widths, "num_features": num_features}
