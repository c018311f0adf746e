"""A face finder without downloads: MTCNN, three small networks whose weights (2 MB, MIT) are part of the package.

It finds boxes and five points. It has no 106 landmarks and no embedding: the lip mask of training, data preparation and
the evaluation of identity need insightface's models.

Source: Zhang et al., Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks,
arXiv 1604.02878. The weights are those of the PyPI package facenet-pytorch 2.6.0; the code is ours.
"""

import logging
from collections import OrderedDict
from pathlib import Path

import cv2
import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from vexpress.errors import InputError
from vexpress.media.faces import Face, FaceAnalyzer, FaceDetector, find_model_dir
from vexpress.options import FACE_MODELS

logger = logging.getLogger(__name__)

WEIGHTS_PATH = Path(__file__).parent / "mtcnn_weights" / "mtcnn.safetensors"
SEARCH_PX = 512  # longer side of the picture in which faces are searched; they are then looked at in the picture itself
MIN_FACE_PX = 24  # of the picture that is searched
PYRAMID_STEP = 0.709  # halves the area
CELL_PX, CELL_STRIDE_PX = 12, 2  # what a value of the first network sees
MIN_SCORES = (0.6, 0.7, 0.7)  # of the three networks
ROOM = (1.0, 0.94, 1.06)  # the last network looks at a face in boxes of these sizes, and in their mirror images
OVERLAP_SAME_SCALE, OVERLAP = 0.5, 0.7


def _trunk(widths: tuple[int, ...], kernels: tuple[int, ...], pools: tuple[int, ...]) -> OrderedDict[str, nn.Module]:
    """Convolutions with PReLU and pooling, named conv1, prelu1, pool1, ...; pool size 0 is none."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (width_in, width, kernel, pool) in enumerate(zip(widths, widths[1:], kernels, pools), start=1):
        layers[f"conv{i}"] = nn.Conv2d(width_in, width, kernel)
        layers[f"prelu{i}"] = nn.PReLU(width)
        if pool:
            layers[f"pool{i}"] = nn.MaxPool2d(pool, 2, ceil_mode=True)
    return layers


class ProposalNet(nn.Module):
    """The first network: scores and box corrections of every cell of a picture (figure 2, P-Net)."""

    def __init__(self):
        super().__init__()
        for name, layer in _trunk((3, 10, 16, 32), (3, 3, 3), (2, 0, 0)).items():
            self.add_module(name, layer)
        self.conv4_1 = nn.Conv2d(32, 2, 1)
        self.conv4_2 = nn.Conv2d(32, 4, 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (b 3 H W) in -1..1 -> scores (b h w) in 0..1 and corrections (b 4 h w) in sides of a cell."""
        x = pixels
        for name, layer in self.named_children():
            if not name.startswith("conv4"):
                x = layer(x)
        return self.conv4_1(x).softmax(1)[:, 1], self.conv4_2(x)


class CropNet(nn.Module):
    """The second and third network: score, box correction and, in the third, five points of a crop (R-Net, O-Net)."""

    def __init__(self, is_last: bool):
        super().__init__()
        if is_last:
            layers = _trunk((3, 32, 64, 64, 128), (3, 3, 3, 2), (3, 3, 2, 0))
        else:
            layers = _trunk((3, 28, 48, 64), (3, 3, 2), (3, 3, 0))
        for name, layer in layers.items():
            self.add_module(name, layer)
        self._trunk_names = list(layers)
        number = 5 if is_last else 4
        size_in, size = (1152, 256) if is_last else (576, 128)
        self.crop_px = 48 if is_last else 24
        self._dense = (f"dense{number}", f"prelu{number}")
        self.add_module(self._dense[0], nn.Linear(size_in, size))
        self.add_module(self._dense[1], nn.PReLU(size))
        self._heads = [f"dense{number + 1}_{i + 1}" for i in range(3 if is_last else 2)]
        for name, width in zip(self._heads, (2, 4, 10)):
            self.add_module(name, nn.Linear(size, width))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Pixels (b 3 n n) in -1..1 -> score (b,), correction (b 4) in sides of the crop, and points (b 10): xs, ys."""
        x = pixels
        for name in self._trunk_names:
            x = self.get_submodule(name)(x)
        x = x.permute(0, 3, 2, 1).flatten(1)  # columns, rows, channels: the order in which the weights were trained
        for name in self._dense:
            x = self.get_submodule(name)(x)
        outputs = [self.get_submodule(name)(x) for name in self._heads]
        return [outputs[0].softmax(1)[:, 1], *outputs[1:]]


class MtcnnDetector(FaceDetector):
    """Finds faces with nothing but what the package holds: boxes and five points.

    Args:
        device: where the networks work.
        weights_path: safetensors with the three networks under pnet, rnet, onet.
    """

    def __init__(self, device: torch.device | str = "cpu", weights_path: str | Path = WEIGHTS_PATH):
        weights = safetensors.torch.load_file(weights_path)
        self.device = torch.device(device)
        networks = {"pnet": ProposalNet(), "rnet": CropNet(is_last=False), "onet": CropNet(is_last=True)}
        for name, network in networks.items():
            own = {key[len(name) + 1 :]: value for key, value in weights.items() if key.startswith(f"{name}.")}
            network.load_state_dict(own)
            network.to(self.device).eval().requires_grad_(False)
        self._proposal_net, self._refine_net, self._output_net = networks.values()

    @torch.inference_mode()
    def detect(self, image: np.ndarray) -> list[Face]:
        """Finds the faces in image (H W 3) uint8 RGB, the largest first."""
        boxes = self._propose(image)
        # Second network: what is no face goes.
        score, correction = self._look_at(image, boxes, self._refine_net)[:2]
        is_face = score > MIN_SCORES[1]
        boxes, score, correction = boxes[is_face], score[is_face], correction[is_face]
        keep = suppress(boxes, score, OVERLAP)
        boxes = square(boxes[keep] + correction[keep] * _sides(boxes[keep]))
        # Third network, twice: its own correction centres the box that points are measured in.
        score, correction, _ = self._look_at(image, boxes, self._output_net)
        is_face = score > MIN_SCORES[2]
        boxes, score, correction = boxes[is_face], score[is_face], correction[is_face]
        boxes = boxes + correction * _sides(boxes)
        keep = suppress(boxes, score, OVERLAP, of_smaller=True)
        boxes, score = boxes[keep], score[keep]
        kps = self._measure_points(image, boxes)
        faces = [Face(box.astype(np.float32), points, float(s)) for box, points, s in zip(boxes, kps, score)]
        return sorted(faces, key=lambda face: face.size.prod(), reverse=True)

    def _propose(self, image: np.ndarray) -> np.ndarray:
        """Squares (n 4) px in which the first network sees a face, over a pyramid of the picture's sizes."""
        height, width = image.shape[:2]
        scale = min(1.0, SEARCH_PX / max(height, width)) * CELL_PX / MIN_FACE_PX
        found = [np.empty((0, 9))]
        while min(height, width) * scale >= CELL_PX:
            size = (round(width * scale), round(height * scale))
            small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            score, correction = self._proposal_net(self._tensor(small[None]))
            rows, columns = (score[0] > MIN_SCORES[0]).nonzero(as_tuple=True)
            corner = torch.stack([columns, rows], 1).cpu().numpy() * CELL_STRIDE_PX
            boxes = np.concatenate([corner, corner + CELL_PX], 1) / np.divide(size, (width, height))[[0, 1, 0, 1]]
            values = torch.cat([score[0][None], correction[0]])[:, rows, columns].T.cpu().numpy()
            keep = suppress(boxes, values[:, 0], OVERLAP_SAME_SCALE)
            found.append(np.concatenate([boxes, values], 1)[keep])
            scale *= PYRAMID_STEP
        boxes, score, correction = np.split(np.concatenate(found), (4, 5), axis=1)
        keep = suppress(boxes, score[:, 0], OVERLAP)
        return square(boxes[keep] + correction[keep] * _sides(boxes[keep]))

    def _look_at(
        self, image: np.ndarray, boxes: np.ndarray, network: CropNet, mirror: bool = False
    ) -> list[np.ndarray]:
        """What the second or third network says of squares (n 4) px of the picture."""
        crops = [crop(image, box, network.crop_px) for box in boxes]
        pixels = np.stack(crops) if crops else np.empty((0, network.crop_px, network.crop_px, 3), np.uint8)
        if mirror:
            pixels = pixels[:, :, ::-1]
        return [output.double().cpu().numpy() for output in network(self._tensor(np.ascontiguousarray(pixels)))]

    def _measure_points(self, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """Five points (n 5 2) float32 px of faces (n 4): the mean over several looks, which errs less than one."""
        squares, seen = square(boxes), []
        for room in ROOM:
            middle, half = (squares[:, :2] + squares[:, 2:]) / 2, room * (squares[:, 2:] - squares[:, :2]) / 2
            looked_at = np.concatenate([middle - half, middle + half], 1)
            for mirror in (False, True):
                shares = (
                    self._look_at(image, looked_at, self._output_net, mirror)[2].reshape(-1, 2, 5).transpose(0, 2, 1)
                )
                if mirror:  # right becomes left
                    shares = (shares * [-1, 1] + [1, 0])[:, [1, 0, 2, 4, 3]]
                seen.append(looked_at[:, None, :2] + shares * 2 * half[:, None])
        return np.mean(seen, axis=0).astype(np.float32)

    def _tensor(self, images: np.ndarray) -> Tensor:
        """Pictures (n H W 3) uint8 -> (n 3 H W) float32 in -1..1."""
        return (torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).float() - 127.5) / 128


def crop(image: np.ndarray, box: np.ndarray, size_px: int) -> np.ndarray:
    """Cuts out a square, x1 y1 x2 y2 in px, at another size; black where it reaches out of the picture."""
    x1, y1, x2, y2 = (int(round(value)) for value in box)
    x2, y2 = max(x2, x1 + 1), max(y2, y1 + 1)
    height, width = image.shape[:2]
    inside = image[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)]
    if inside.size == 0:
        return np.zeros((size_px, size_px, 3), np.uint8)
    margins = (max(-y1, 0), max(y2 - height, 0), max(-x1, 0), max(x2 - width, 0))
    if any(margins):
        inside = cv2.copyMakeBorder(inside, *margins, cv2.BORDER_CONSTANT)
    shrinks = x2 - x1 > size_px
    return cv2.resize(inside, (size_px, size_px), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def square(boxes: np.ndarray) -> np.ndarray:
    """Boxes (n 4) -> squares about their middles with the longer side."""
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True) / 2
    return np.concatenate([middle - half, middle + half], axis=1)


def _sides(boxes: np.ndarray) -> np.ndarray:
    """Boxes (n 4) -> width, height, width, height (n 4)."""
    return np.tile(boxes[:, 2:] - boxes[:, :2], 2)


def suppress(boxes: np.ndarray, score: np.ndarray, max_overlap: float, of_smaller: bool = False) -> np.ndarray:
    """Non-maximum suppression: numbers of the boxes (n 4) to keep, best first.

    Args:
        boxes: x1 y1 x2 y2.
        score: (n,).
        max_overlap: what overlaps a better box by more goes; intersection over union.
        of_smaller: intersection over the smaller of both instead.
    """
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    order, keep = np.argsort(-score, kind="stable"), []
    while len(order):
        best, order = order[0], order[1:]
        keep.append(best)
        low, high = np.maximum(boxes[best, :2], boxes[order, :2]), np.minimum(boxes[best, 2:], boxes[order, 2:])
        shared = np.clip(high - low, 0, None).prod(axis=1)
        whole = np.minimum(area[best], area[order]) if of_smaller else area[best] + area[order] - shared
        order = order[shared <= max_overlap * whole]
    return np.array(keep, dtype=int)


def load_face_detector(
    face_models: str | None, insightface_model_path: str | Path, device: torch.device | str = "cpu"
) -> FaceDetector:
    """Loads what finds faces.

    Args:
        face_models: one of FACE_MODELS; None takes insightface's models where they are, and else MTCNN, and says so.
        insightface_model_path: folder of insightface's models.
        device: where to work.

    Raises:
        InputError: no such choice, or insightface is asked for and its models are missing or damaged.
    """
    if face_models not in (None, *FACE_MODELS):
        raise InputError(f"allowed are {', '.join(FACE_MODELS)}", "face_models", face_models)
    if face_models is None:
        try:
            find_model_dir(insightface_model_path)
        except InputError:
            logger.warning("no insightface models in %s: `face_models` mtcnn finds the face", insightface_model_path)
            face_models = "mtcnn"
    return MtcnnDetector(device) if face_models == "mtcnn" else FaceAnalyzer(insightface_model_path, device)
