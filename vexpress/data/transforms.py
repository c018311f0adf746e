"""The geometry of one sample: a crop, resized and perhaps mirrored, the same for pixels, points and lip mask.

Coordinates are in px; pixel i covers i to i + 1, so that the pixel of a point is its coordinate rounded down (as
V-Kps are rendered) and a picture of width w mirrors x to w - x.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

LIPS = slice(52, 72)  # of the 106 landmarks
EYES, BROWS = (slice(33, 43), slice(87, 97)), (slice(43, 52), slice(97, 106))  # the viewer's left and right
# insightface's 106 points: 12 around the lips from the viewer's left corner over the top, and 8 around the opening.
OUTER_LIPS = [52, 64, 63, 71, 67, 68, 61, 58, 59, 53, 56, 55]
INNER_LIPS = [65, 66, 62, 70, 69, 57, 60, 54]


@dataclass(frozen=True)
class Geometry:
    """A crop of a frame, resized to width x height, and mirrored if `flip`.

    Attributes:
        box: x1 y1 x2 y2 of the crop in px of the frame, the second point outside of it.
        width: in px, likewise height.
        flip: whether left and right change sides, after the crop.
    """

    box: tuple[int, int, int, int]
    width: int
    height: int
    flip: bool


def random_geometry(
    rng: np.random.Generator,
    frame_size: tuple[int, int],
    size: tuple[int, int],
    crop_ratio: tuple[float, float],
    flip_rate: float,
) -> Geometry:
    """Chooses a crop and a flip: of a log-uniform width / height, as large as fits, anywhere.

    Args:
        rng: four numbers are taken from it.
        frame_size: width and height of the frames in px.
        size: width and height of the result in px.
        crop_ratio: least and largest width to height of the crop; it is stretched to `size`.
        flip_rate: probability of mirroring.

    Differs from the release: torchvision's RandomResizedCrop of scale 1 keeps the area, so that no other ratio than 1
    fits into a square frame, and it falls back to the whole frame.
    """
    flip = random_flip(rng, flip_rate)
    ratio = np.exp(rng.uniform(*np.log(crop_ratio)))
    return _crop(frame_size, size, ratio, rng.random(2), flip)


def random_flip(rng: np.random.Generator, flip_rate: float) -> bool:
    """Chooses whether to mirror, with probability `flip_rate`; takes one number from `rng`."""
    return bool(rng.random() < flip_rate)


def central_geometry(frame_size: tuple[int, int], size: tuple[int, int], flip: bool) -> Geometry:
    """The central square of a frame, as large as fits: what cached latents show. Arguments as of `random_geometry`."""
    return _crop(frame_size, size, 1.0, np.array([0.5, 0.5]), flip)


def _crop(frame_size: tuple[int, int], size: tuple[int, int], ratio: float, place: np.ndarray, flip: bool) -> Geometry:
    """The largest crop of a width to height; `place`, 0 to 1 in x and y, is where in the room that is left."""
    frame_width, frame_height = frame_size
    width = max(1, min(frame_width, round(frame_height * ratio)))
    height = max(1, min(frame_height, round(frame_width / ratio)))
    left = int(place[0] * (frame_width - width + 1))
    top = int(place[1] * (frame_height - height + 1))
    return Geometry((left, top, left + width, top + height), *size, flip)


def transform_frames(frames: np.ndarray, geometry: Geometry) -> Tensor:
    """Crops, resizes (bilinear, antialiased) and mirrors frames (f H W 3) uint8 to (f 3 h w) uint8."""
    x1, y1, x2, y2 = geometry.box
    pixels = rearrange(torch.from_numpy(frames[:, y1:y2, x1:x2]), "f h w c -> f c h w")
    size = (geometry.height, geometry.width)
    if pixels.shape[2:] != size:
        pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
    return pixels.flip(-1) if geometry.flip else pixels


def transform_points(points: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Moves points (... 2) of a frame to where they are in the transformed frame; they may come to lie outside."""
    x1, y1, x2, y2 = geometry.box
    moved = (points - [x1, y1]) * [geometry.width / (x2 - x1), geometry.height / (y2 - y1)]
    if geometry.flip:
        moved[..., 0] = geometry.width - moved[..., 0]
    return moved.astype(np.float32)


def transform_kps(kps: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Moves keypoints (... 3 2): left eye, right eye, nose. In a mirrored frame the eyes swap: left is the viewer's."""
    moved = transform_points(kps, geometry)
    return moved[..., [1, 0, 2], :] if geometry.flip else moved


def lip_corners(landmark_2d_106: np.ndarray) -> np.ndarray:
    """Finds the box around the lips: landmarks (... 106 2) -> (... 2 2), its upper left and lower right corner."""
    lips = landmark_2d_106[..., LIPS, :]
    return np.stack([lips.min(axis=-2), lips.max(axis=-2)], axis=-2)


def eye_corners(landmark_2d_106: np.ndarray) -> np.ndarray:
    """Finds the boxes around each eye and its brow: landmarks (... 106 2) -> (... eye corner xy), as `lip_corners`."""
    parts = [
        np.concatenate([landmark_2d_106[..., eye, :], landmark_2d_106[..., brow, :]], axis=-2)
        for eye, brow in zip(EYES, BROWS)
    ]
    return np.stack([np.stack([part.min(axis=-2), part.max(axis=-2)], axis=-2) for part in parts], axis=-3)


def lip_mask_box(landmark_2d_106: np.ndarray, scale: float) -> np.ndarray:
    """Computes the box of the lip mask: that of the lips, scaled about its centre.

    Args:
        landmark_2d_106: (... 106 2) px.
        scale: how much wider and higher than the lips.

    Returns:
        (... 4) int64, x1 y1 x2 y2 in px; may reach out of the frame.

    Source: the recorded box of the release; it rounds the corners of the lips down before it scales.
    """
    return scaled_box(lip_corners(landmark_2d_106), scale)


def scaled_box(corners: np.ndarray, scale: float) -> np.ndarray:
    """Scales a box about its centre as `lip_mask_box` does: corners (... 2 2) px -> (... 4) int64 x1 y1 x2 y2."""
    corners = np.floor(corners)
    low, high = corners.min(axis=-2), corners.max(axis=-2)
    centre, reach = (low + high) / 2, (high - low) / 2 * scale
    return np.floor(np.concatenate([centre - reach, centre + reach], axis=-1)).astype(np.int64)


def render_lip_mask(box: np.ndarray, height: int, width: int, downsampling: int) -> Tensor:
    """Renders the mask of the lips on the grid of latents.

    A latent that the box touches counts in full: it carries pixels of the mouth, and however small the lips are, the
    mask is not empty unless the box is outside of the frame.

    Args:
        box: (4,) int x1 y1 x2 y2 px, both corners in it.
        height: of the frame in px, likewise width.
        downsampling: px per latent, along each side.

    Returns:
        (h w) float32, 0 or 1.
    """
    mask = torch.zeros(height // downsampling, width // downsampling)
    x1, y1, x2, y2 = (box // downsampling).tolist()
    mask[max(0, y1) : max(0, y2 + 1), max(0, x1) : max(0, x2 + 1)] = 1
    return mask


def render_masks(boxes: np.ndarray, height: int, width: int, downsampling: int) -> Tensor:
    """Renders the masks of several boxes per frame (f k 4) as `render_lip_mask` does: (f h w), 1 in any of them."""
    masks = [[render_lip_mask(box, height, width, downsampling) for box in of_frame] for of_frame in boxes]
    return torch.stack([torch.stack(each).amax(dim=0) for each in masks])
