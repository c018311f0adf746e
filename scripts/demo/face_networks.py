"""Small face networks for drawn faces, with the ONNX signatures that insightface loads.

The detector works on pictures at a quarter of their size, where every cell of a fine grid votes for where the points of
the face around it are. A place's keypoints are the weighted mean of the votes in a window around it, so that the cells
at an eye decide about the eye.
"""

import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vexpress.files import replacing

SHRINK = 4  # from insightface's picture to the detector's
FINE_PX = 16  # side of a cell of the fine grid, in insightface's picture
LEVELS = ((16, 7), (32, 15))  # stride in px, and window in cells of the fine grid: for small and for large faces
NUM_POINTS = 7  # the five keypoints, and two corners of the box
CAUTION = 1.5  # taken off the scores' logits: faces have 2.3 and more, grain at times 0.3, and insightface asks for 0
LARGEST_VOTE = 6.0  # logarithm of a vote's weight
EMBEDDING_SIZE, NUM_LANDMARKS = 512, 106


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3 x 3, normalized and rectified."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Residual(nn.Module):
    """Two convolutions around which the input passes."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(convolution(channels, channels), convolution(channels, channels))

    def forward(self, features: Tensor) -> Tensor:
        """(n c h w) -> the same."""
        return features + self.layers(features)


class Trunk(nn.Module):
    """(n 3 h w) -> features at a quarter, an eighth and a sixteenth of the size."""

    def __init__(self, channels: tuple[int, int, int, int], num_blocks: tuple[int, int, int]):
        super().__init__()
        self.stem = convolution(3, channels[0], 2)
        self.stages = nn.ModuleList(
            nn.Sequential(convolution(inputs, outputs, 2), *(Residual(outputs) for _ in range(count)))
            for inputs, outputs, count in zip(channels, channels[1:], num_blocks)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """See the class."""
        features = [self.stem(images)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features[1:]


class Detector(nn.Module):
    """SCRFD's signature: images (1 3 H W) -> scores (n 1), boxes (n 4), keypoints (n 10) of strides 8, 16 and 32.

    Stride 8 finds nothing. H and W are multiples of 32; RGB, (value - 127.5) / 128.
    """

    def __init__(self):
        super().__init__()
        channels = (16, 32, 64, 80)
        self.trunk = Trunk(channels, (1, 2, 1))
        self.to_middle, self.to_fine = nn.Conv2d(80, 64, 1), nn.Conv2d(64, 32, 1)
        self.middle, self.fine = convolution(64, 64), convolution(32, 32)
        self.scores = nn.ModuleList([nn.Conv2d(32, 1, 1), nn.Conv2d(64, 1, 1)])
        self.votes = nn.Conv2d(32, 3 * NUM_POINTS, 1)
        for layer in self.scores:
            nn.init.constant_(layer.bias, -4.0)

    def levels(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Looks at pictures (n 3 h w) of a quarter of the size.

        Returns:
            For each of LEVELS the scores' logits (n h' w') and points (n 14 h' w'), x and y in turn, in cells of the
            fine grid.
        """
        fine, middle, coarse = self.trunk(images)
        middle = self.middle(middle + F.interpolate(self.to_middle(coarse), middle.shape[-2:]))
        fine = self.fine(fine + F.interpolate(self.to_fine(middle), fine.shape[-2:]))
        votes = self.votes(fine)
        weights = (torch.tanh(votes[:, 2 * NUM_POINTS :] / LARGEST_VOTE) * LARGEST_VOTE).exp()
        weights = weights.repeat_interleave(2, 1)
        places = (4 * votes[:, : 2 * NUM_POINTS] + fine_grid(fine).repeat(1, NUM_POINTS, 1, 1)) * weights
        levels = []
        for (stride, window), scores, features in zip(LEVELS, self.scores, (fine, middle)):
            rows = F.avg_pool2d(torch.cat([places, weights], 1), (1, window), (1, stride // FINE_PX), (0, window // 2))
            points, total = F.avg_pool2d(rows, (window, 1), (stride // FINE_PX, 1), (window // 2, 0)).chunk(2, 1)
            levels.append((scores(features)[:, 0], points / total))
        return levels

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        silent = 0 * F.avg_pool2d(images, 8)[:, :1]
        outputs = [tuple(flat(silent.repeat(1, size, 1, 1)) for size in (1, 4, 10))]
        small = F.avg_pool2d(images, SHRINK)
        for (stride, _), (scores, points) in zip(LEVELS, self.levels(small)):
            step = stride // FINE_PX
            cells = fine_grid(F.avg_pool2d(small, FINE_PX // SHRINK))[:, :, ::step, ::step]
            offsets = (points - cells.repeat(1, NUM_POINTS, 1, 1)) / step
            box = torch.cat([-offsets[:, 10:12], offsets[:, 12:14]], 1)
            outputs.append((flat((scores[:, None] - CAUTION).sigmoid()), flat(box), flat(offsets[:, :10])))
        return tuple(output for kind in zip(*outputs) for output in kind)


def fine_grid(features: Tensor) -> Tensor:
    """(1 2 h w): column and row of each cell of (n c h w); traces to any size."""
    ones = torch.ones_like(features[:1, :1])
    return torch.cat([ones.cumsum(3), ones.cumsum(2)], 1) - 1


def flat(output: Tensor) -> Tensor:
    """(1 c h w) -> (n c) with two equal anchors per cell."""
    return output[0].flatten(1).T.repeat_interleave(2, 0)


class Landmarks(nn.Module):
    """(n 3 192 192) -> (n 212): 106 points, x and y in turn, -1..1 across the crop. RGB, (value - 127.5) / 128."""

    def __init__(self):
        super().__init__()
        self.trunk = Trunk((16, 32, 64, 64), (1, 1, 1))
        self.head = nn.Sequential(nn.Conv2d(64, 16, 1), nn.Flatten(), nn.Linear(16 * 6 * 6, 2 * NUM_LANDMARKS))

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return self.head(self.trunk(F.avg_pool2d(images, 2))[-1])


class Recognition(nn.Module):
    """(n 3 112 112) -> (n 512): near 1 in cosine for pictures of one person. RGB, (value - 127.5) / 127.5."""

    def __init__(self):
        super().__init__()
        self.trunk = Trunk((16, 32, 64, 64), (1, 1, 1))
        self.head = nn.Sequential(nn.Conv2d(64, 8, 1), nn.Flatten(), nn.Linear(8 * 7 * 7, EMBEDDING_SIZE))

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return self.head(self.trunk(images)[-1])


OUTPUTS = {
    "detection": [f"{kind}_{stride}" for kind in ("score", "bbox", "kps") for stride in (8, 16, 32)],
    "landmarks": ["landmarks"],
    "recognition": ["embedding"],
}
NETWORKS = {"detection": (Detector, 512), "landmarks": (Landmarks, 192), "recognition": (Recognition, 112)}


def export_network(name: str, network: nn.Module, folder: Path) -> Path:
    """Writes <folder>/<name>.onnx, with a dynamic size for the detector; leaves the network in evaluation mode."""
    size_px = NETWORKS[name][1]
    with warnings.catch_warnings(), replacing(folder / f"{name}.onnx") as temporary:
        warnings.simplefilter("ignore")  # the exporter's, on the tracing of sizes that this code keeps out of Python
        torch.onnx.export(
            network.eval(), (torch.zeros(1, 3, size_px, size_px),), str(temporary), input_names=["input"],
            output_names=OUTPUTS[name], dynamo=False, opset_version=17,
            dynamic_axes={"input": {2: "height", 3: "width"}} if name == "detection" else None,
        )  # fmt: skip
    return folder / f"{name}.onnx"
