"""Setting generated pictures of a face into a whole picture: where, how much of each pixel, and in matching colours.

Outside of the mask every pixel stays bit for bit what it was.
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vexpress.media.retargeting import EYES_AHEAD, measure_pose

BORDER_SHARE = 0.06  # of the crop's side, over which the mask falls to 0 at the crop's border
MATCH_PX = 96  # longer side at which colours are compared
MATCH_SPREAD = 0.12  # standard deviation of the blur of differences, in sides of the crop
MATCH_LIMIT = 24.0  # of 255; what differs by more is another content, not another colour
MATCH_GLOBAL = 0.02  # weight of the mean difference, where no pixel to compare is near
MATCH_DOUBT = 0.02  # share of the rim that must agree before a difference is believed
MATCH_MEMORY = 0.8  # share of the former frame's correction in the next one's, against flicker
GRID_PX = 160  # at which masks are computed, at most
UNION_POSES = 256  # that a clip's union of masks is made of


@dataclass(frozen=True)
class Region:
    """An egg on a face, in distances of the eyes as seen from the front.

    Attributes:
        middle: how far it is below the line through the eyes.
        up: reach above the middle; likewise down, and half_width.
        soft: share of the reach over which it fades out.
    """

    middle: float
    up: float
    down: float
    half_width: float
    soft: float


SPEECH = Region(middle=0.95, up=0.75, down=1.25, half_width=1.05, soft=0.25)
"""Below the eyes to below an open mouth's chin: what speech moves; eyes, which it does not, stay those of the video."""
HEAD = Region(middle=0.0, up=2.5, down=2.5, half_width=2.0, soft=0.25)
"""With hair and the upper neck: what moves with the head."""


@dataclass(frozen=True)
class Box:
    """Where a generated picture lies in the whole one, px; left and top may be between pixels, or outside."""

    left: float
    top: float
    width: int
    height: int

    def to_whole(self, kps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Points (... 2) px of a generated picture of size (width, height) -> px of the whole one."""
        return kps * np.divide((self.width, self.height), size) + (self.left, self.top)

    def to_generated(self, kps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Turns `to_whole` around."""
        return (kps - np.array([self.left, self.top])) * np.divide(size, (self.width, self.height))


def region_mask(kps: np.ndarray, region: Region, box: Box) -> np.ndarray:
    """How much of each pixel of a box is replaced for a face.

    Args:
        kps: (3 2) px of the whole picture: left eye, right eye, nose.
        region: what of the face.
        box: of the generated picture.

    Returns:
        (H W) float32 of the box, 0..1; 0 at the box's border.
    """
    pose = measure_pose(torch.as_tensor(np.asarray(kps, np.float64)))
    size, roll, turn = float(pose[2].exp()), float(pose[3]), float(pose[4])
    along, down = np.array([np.cos(roll), np.sin(roll)]), np.array([-np.sin(roll), np.cos(roll)])
    # Turned, features move ahead of the outline: the middle is between those and the head's axis.
    middle = pose[:2].numpy() + 0.5 * EYES_AHEAD * size * np.sin(turn) * along
    # A smooth shape: at a coarse grid it is the same, and large pictures cost no more.
    columns, rows = min(box.width, GRID_PX), min(box.height, GRID_PX)
    x = (np.arange(columns) + 0.5) * box.width / columns + np.floor(box.left)
    y = (np.arange(rows) + 0.5) * box.height / rows + np.floor(box.top)
    x, y = (x - middle[0])[None] / size, (y - middle[1])[:, None] / size
    across, below = x * along[0] + y * along[1], x * down[0] + y * down[1] - region.middle
    reach = np.where(below < 0, region.up, region.down)
    distance = np.hypot(across / region.half_width, below / reach)
    mask = _smooth((1 - distance) / region.soft).astype(np.float32)
    return cv2.resize(mask, (box.width, box.height), interpolation=cv2.INTER_LINEAR) * border_mask(box)


def border_mask(box: Box) -> np.ndarray:
    """(H W) float32 of the box: 1 inside, falling smoothly to 0 at its border."""
    rows, columns = (
        _smooth((np.minimum(np.arange(n), np.arange(n)[::-1]) / n - 1 / n) / BORDER_SHARE)
        for n in (box.height, box.width)
    )
    return np.minimum(rows[:, None], columns[None]).astype(np.float32)


def union_mask(kps: np.ndarray, region: Region, box: Box) -> np.ndarray:
    """The one mask (H W) that covers a region in all poses (f 3 2) px of a clip: what stays beside it never moves."""
    step = max(1, len(kps) // UNION_POSES)
    shrink = min(1.0, GRID_PX / max(box.width, box.height))
    small = Box(box.left * shrink, box.top * shrink, round(box.width * shrink), round(box.height * shrink))
    masks = (region_mask(points * shrink, region, small) for points in kps[::step])
    mask = functools.reduce(np.maximum, masks)
    return cv2.resize(mask, (box.width, box.height), interpolation=cv2.INTER_LINEAR)


def _smooth(share: np.ndarray) -> np.ndarray:
    """0..1 -> 0..1 with level ends."""
    share = np.clip(share, 0, 1)
    return share * share * (3 - 2 * share)


class Compositor:
    """Sets frames of one shot into whole pictures, one at a time.

    Args:
        matches: colours are made those of the picture at the seam.
    """

    def __init__(self, matches: bool = True):
        self._matches = matches
        self._correction: np.ndarray | None = None

    def compose(self, whole: np.ndarray, generated: np.ndarray, mask: np.ndarray, box: Box) -> np.ndarray:
        """Sets one frame.

        Args:
            whole: (H W 3) uint8; it is not changed.
            generated: (h w 3) uint8, of any size; it is resized to the box.
            mask: (box.height box.width), 0..1.
            box: where it lies.

        Returns:
            (H W 3) uint8, a copy.
        """
        result = whole.copy()
        left, top = int(np.floor(box.left)), int(np.floor(box.top))
        x1, y1 = max(left, 0), max(top, 0)
        x2, y2 = min(left + box.width, whole.shape[1]), min(top + box.height, whole.shape[0])
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        if not len(rows) or x2 <= x1 or y2 <= y1:
            return result
        x1, x2 = max(x1, left + columns[0]), min(x2, left + columns[-1] + 1)
        y1, y2 = max(y1, top + rows[0]), min(y2, top + rows[-1] + 1)
        if x2 <= x1 or y2 <= y1:
            return result
        inner = np.s_[y1 - top : y2 - top, x1 - left : x2 - left]
        patch = result[y1:y2, x1:x2].astype(np.float32)
        new = fitted(generated, box)[inner].astype(np.float32)
        share = mask[inner][..., None]
        if self._matches:
            new += self._match(patch, new, mask[inner], box)
        result[y1:y2, x1:x2] = np.clip(np.rint(patch + share * (new - patch)), 0, 255)
        return result

    def _match(self, patch: np.ndarray, new: np.ndarray, mask: np.ndarray, box: Box) -> np.ndarray:
        """What to add to `new` (H W 3) so that its colours are those of `patch` where the mask fades out."""
        height, width = mask.shape
        shrink = min(1.0, MATCH_PX / max(height, width))
        size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        small = [cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in (patch, new, mask)]
        difference = small[0] - small[1]
        # The rim of the mask tells of colours, unless the pictures show different things there.
        rim = 4 * small[2] * (1 - small[2])
        weight = rim * np.exp(-((np.abs(difference).max(2) / MATCH_LIMIT) ** 2))
        deviation = MATCH_SPREAD * max(box.width, box.height) * shrink
        mean = (difference * weight[..., None]).sum((0, 1)) / (weight.sum() + MATCH_DOUBT * rim.sum() + 1e-6)
        near = cv2.GaussianBlur(weight, (0, 0), deviation)[..., None] + MATCH_GLOBAL
        field = (cv2.GaussianBlur(difference * weight[..., None], (0, 0), deviation) + MATCH_GLOBAL * mean) / near
        if self._correction is not None:
            former = cv2.resize(self._correction, size, interpolation=cv2.INTER_LINEAR)
            field = MATCH_MEMORY * former + (1 - MATCH_MEMORY) * field
        self._correction = field.astype(np.float32)
        return cv2.resize(self._correction, (width, height), interpolation=cv2.INTER_LINEAR)


def fitted(generated: np.ndarray, box: Box) -> np.ndarray:
    """A generated picture (h w 3) uint8 at the size of its box, shifted by the fraction of a pixel that it asks for."""
    size = (box.width, box.height)
    if generated.shape[1::-1] != size:
        shrinks = generated.shape[1] > box.width
        generated = cv2.resize(generated, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    shift = np.array([[1, 0, box.left % 1], [0, 1, box.top % 1]])
    if not shift[:, 2].any():
        return generated
    return cv2.warpAffine(generated, shift, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


@dataclass(frozen=True)
class PasteBack:
    """A whole still picture into which the frames of its crop are set.

    Attributes:
        picture: (H W 3) uint8.
        box: the crop.
    """

    picture: np.ndarray
    box: Box

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the video, px: even, as H.264 needs them."""
        height, width = self.picture.shape[:2]
        return width - width % 2, height - height % 2

    def kps(self, kps: Tensor, size: tuple[int, int]) -> Tensor:
        """Keypoints (... 3 2) px of generated frames of `size` -> px of the whole picture."""
        return torch.from_numpy(self.box.to_whole(kps.double().numpy(), size)).float()

    def compose(self, frames: Iterable[np.ndarray], reference_kps: Tensor, kps: Tensor) -> Iterator[np.ndarray]:
        """Sets frames into the picture, one at a time.

        The mask is that of the head wherever it is in the clip, and where it is in the picture, which it must hide.

        Args:
            frames: (h w 3) uint8.
            reference_kps: (3 2) px of the whole picture, the face in it.
            kps: (f 3 2) likewise, those of the frames.

        Yields:
            (H W 3) uint8, of `size`.
        """
        width, height = self.size
        picture = self.picture[:height, :width]
        mask = union_mask(np.concatenate([reference_kps[None].numpy(), kps.numpy()]), HEAD, self.box)
        compositor = Compositor()
        for frame in frames:
            yield compositor.compose(picture, frame, mask, self.box)


def even_picture(image: Image.Image, max_px: int) -> Image.Image:
    """A picture as large as a video may be."""
    share = max_px / max(image.size)
    if share >= 1:
        return image
    size = (max(1, round(side * share)) for side in image.size)  # a line of pixels stays one
    return image.resize(tuple(size), Image.Resampling.LANCZOS)
