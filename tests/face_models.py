"""Tiny face networks without training, which the real insightface loads, and the cartoon face that they find.

    build_face_models(folder)                        # det_test.onnx, landmark_test.onnx, recognition_test.onnx
    image = np.full((512, 512, 3), 90, np.uint8)
    points = draw_face(image, center=(256, 240), eye_distance=100)   # (5 2) px, what a detector should return

The detector finds each point by its colour, as the centroid of the pixels of that colour in a window. Limits, in px of
the 512x512 image that the detector sees: `eye_distance` from about 16 to 200; a second face must be farther from the
first than both are tall, or half as far and smaller. Noise and video coding do no harm while dots stay 3 px or wider.
"""

import warnings
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Left eye, right eye, nose, left and right corner of the mouth: colour (RGB), and place in eye distances from the nose.
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
LAYOUT = np.array([(-0.5, -0.5), (0.5, -0.5), (0, 0), (-0.35, 0.5), (0.35, 0.5)], np.float32)
HALF_WIDTH, HALF_HEIGHT = 1.0, 1.3  # of the box around the nose, in eye distances
LEVELS = ((8, 41, 0.6), (16, 121, 0.75), (32, 321, 0.95))  # stride and window in px, and highest score of each level
POOL = 4


def draw_face(
    image: np.ndarray, center: tuple[float, float], eye_distance: float = 100, skin: tuple[int, int, int] = (128,) * 3
) -> np.ndarray:
    """Draws a face with its nose at `center` onto image (H W 3) uint8 RGB; returns its keypoints (5 2) float32 px."""
    points = LAYOUT * eye_distance + np.asarray(center, np.float32)
    axes = (round(HALF_WIDTH * eye_distance), round(HALF_HEIGHT * eye_distance))
    cv2.ellipse(image, tuple(np.rint(center).astype(int).tolist()), axes, 0, 0, 360, skin, -1)
    for point, colour in zip(points, COLOURS):
        # The last four bits of a coordinate are fractions of a pixel.
        cv2.circle(image, np.rint(point * 16).astype(int).tolist(), round(eye_distance * 1.6), colour, -1, shift=4)
    return points


class Detector(nn.Module):
    """SCRFD's signature: images (1 3 H W) -> scores (n 1), boxes (n 4) and keypoints (n 10) of strides 8, 16 and 32."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        colours = (torch.tensor(COLOURS, dtype=torch.float32) - 127.5) / 128
        masks = F.relu(1 - (images - colours[..., None, None]).abs().sum(1, keepdim=True)).transpose(0, 1)
        ones = torch.ones_like(images[:, :1])
        x, y = ones.cumsum(3) - 1, ones.cumsum(2) - 1
        moments = F.avg_pool2d(torch.cat([masks, masks * x, masks * y, masks * (x * x + y * y)], 1), POOL)
        levels = [self.level(moments, ones, *level) for level in LEVELS]
        return tuple(output for outputs in zip(*levels) for output in outputs)

    def level(
        self, moments: Tensor, ones: Tensor, stride: int, window: int, score: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        size = window // POOL | 1
        pooled = F.avg_pool2d(moments, size, stride // POOL, size // 2).flatten(2)[0].T  # (cells, 4 moments x 5 points)
        mass, x, y, squares = pooled.unflatten(1, (4, 5)).unbind(1)
        points = torch.stack([x, y], 2) / mass.clamp_min(1e-6)[..., None]  # (cells, 5, 2)
        spread = (squares / mass.clamp_min(1e-6) - points.square().sum(2)).clamp_min(0).amax(1).sqrt()
        eye_distance = (points[:, 1] - points[:, 0]).square().sum(1).sqrt()
        nose = points[:, 2]
        cells = torch.stack([ones.cumsum(3) - 1, ones.cumsum(2) - 1], 2)[0, 0, :, ::stride, ::stride].flatten(1).T
        # A window that holds parts of two faces has a colour in two places; one that holds half a face lacks a colour.
        whole = (mass.amin(1) > 1e-4) & (spread < 0.3 * eye_distance)
        # The cell nearest to the nose wins, and the larger window where several hold the face.
        scores = whole * score * torch.exp(-(nose - cells).square().sum(1).sqrt() / (6 * stride))
        half = eye_distance[:, None] * torch.tensor([HALF_WIDTH, HALF_HEIGHT])
        box = torch.cat([cells - nose + half, nose - cells + half], 1) / stride
        offsets = ((points - cells[:, None]) / stride).flatten(1)
        return tuple(
            output.repeat_interleave(2, 0) for output in (scores[:, None], box, offsets)
        )  # two anchors per cell


class Landmarks(nn.Module):
    """(1 3 192 192) -> (1 212): 106 fixed points, of which 52 to 71 ring the mouth and the others the box."""

    def forward(self, images: Tensor) -> Tensor:
        angle = torch.linspace(0, 2 * torch.pi, 107)[:106]
        ring = torch.stack([angle.cos() * HALF_WIDTH, angle.sin() * HALF_HEIGHT], 1)
        angle = torch.linspace(0, 2 * torch.pi, 21)[:20]
        ring[52:72] = torch.stack([angle.cos() * 0.35, angle.sin() * 0.15 + 0.5], 1)
        return ring.flatten()[None] / (1.5 * HALF_HEIGHT) + 0 * images.mean()  # the crop is 1.5 times the box


class Recognition(nn.Module):
    """(1 3 112 112) -> (1 512): the aligned face's own colours, coarsely; faces of another `skin` differ."""

    def forward(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, 8).flatten(1)[:, :512]


def build_face_models(folder: str | Path) -> Path:
    """Writes the three networks as .onnx files into `folder` (made if it is missing) and returns it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    outputs = [f"{kind}_{stride}" for kind in ("score", "bbox", "kps") for stride, *_ in LEVELS]
    networks = {
        "det_test": (Detector(), (512, 512), outputs, {"input": {2: "height", 3: "width"}}),
        "landmark_test": (Landmarks(), (192, 192), ["landmarks"], None),
        "recognition_test": (Recognition(), (112, 112), ["embedding"], None),
    }
    warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # on constants, which these are
    for name, (network, size, output_names, dynamic_axes) in networks.items():
        torch.onnx.export(
            network, (torch.zeros(1, 3, *size),), str(folder / f"{name}.onnx"), input_names=["input"],
            output_names=output_names, dynamic_axes=dynamic_axes, dynamo=False, opset_version=17,
        )  # fmt: skip
    return folder
