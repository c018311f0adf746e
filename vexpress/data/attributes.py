"""Attributes of faces as labels: exact ones from files, and what the 106 landmarks of real faces say.

The six values of a frame stand in the order of `vexpress.models.attributes.ATTRIBUTES`; NaN is not known.
"""

import os

import numpy as np
import scipy.ndimage

from vexpress.data.arrays import float_array, most_bytes, read_file, readable_path
from vexpress.data.transforms import BROWS, EYES, OUTER_LIPS
from vexpress.errors import InputError
from vexpress.files import replacing
from vexpress.models.attributes import ATTRIBUTES

ATTRIBUTES_SUFFIXES = (".npz",)
ATTRIBUTES_KEY = "attributes"
MIRRORED = [1, 0, 2, 3, 4, 5]  # lids change sides

NOSE_TIP = 86  # of insightface's 106 points; which point of an eye is which is not used
OPEN_PERCENTILE, CLOSED_SHARE = 90, 0.35  # of an eye's height; landmarks of a closed eye do not meet
EDGE_PERCENTILES = (2, 98)
SMALLEST_BROW_REACH, SMALLEST_SMILE_REACH = 0.05, 0.1  # distances of the eyes, or noise would fill the range
SMILE_SMOOTHING_FRAMES = 8  # standard deviation; speech moves the corners faster


def load_attributes(path: str | os.PathLike) -> np.ndarray:
    """Reads attributes: an `.npz` with `attributes` (n 6).

    Returns:
        (n 6) float32.

    Raises:
        InputError: missing, damaged, of another shape, or a value outside of its range.
    """
    path = readable_path(path, "attributes", ATTRIBUTES_SUFFIXES)
    values = float_array(read_file(path, "attributes").get(ATTRIBUTES_KEY, ()), most_bytes(path))
    if values.ndim != 2 or values.shape[1] != len(ATTRIBUTES) or not len(values):
        raise InputError(
            f"attributes {path}: {ATTRIBUTES_KEY} has shape {values.shape}, needed is (frames, {len(ATTRIBUTES)})"
        )
    for name, (low, high), column in zip(ATTRIBUTES, ATTRIBUTES.values(), values.T):
        if ((column < low) | (column > high)).any():
            raise InputError(f"attributes {path}: {name} is not {low:g} to {high:g} in each frame, or NaN")
    return values


def save_attributes(path: str | os.PathLike, attributes: np.ndarray) -> None:
    """Writes attributes (n 6) as `load_attributes` reads them."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **{ATTRIBUTES_KEY: attributes.astype(np.float32)})


def mirror_attributes(attributes: np.ndarray) -> np.ndarray:
    """Attributes (... 6) of the mirrored frames: lids change sides, and so does the gaze."""
    mirrored = attributes[..., MIRRORED]
    mirrored[..., list(ATTRIBUTES).index("gaze_x")] *= -1
    return mirrored


def clip_attributes(path: str | os.PathLike | None, landmark_2d_106: np.ndarray) -> np.ndarray:
    """The attributes of a clip's frames: those of its file, or without one what its landmarks (n 106 2) px say.

    Returns:
        (n 6) float32.

    Raises:
        InputError: the file cannot be used, or has fewer frames.
    """
    if path is None:
        return attributes_from_landmarks(landmark_2d_106)
    num_frames = len(landmark_2d_106)
    values = load_attributes(path)[:num_frames]
    if len(values) < num_frames:
        raise InputError(f"attributes {path}: {len(values)} frames, needed are {num_frames}")
    return values


def attributes_from_landmarks(landmark_2d_106: np.ndarray) -> np.ndarray:
    """Estimates lids, brows and smile of a clip, each scaled by what the clip itself shows.

    A lid is 1 at the height that the eye reaches in a tenth of the frames, and 0 at `CLOSED_SHARE` of it. Brows are
    measured from their median, the smile from the lowest mouth of the clip, each in shares of the clip's own reach.
    Gaze cannot be had from landmarks, so it is not known; a face of no size has nothing known.

    Args:
        landmark_2d_106: (n 106 2) px.

    Returns:
        (n 6) float32.
    """
    points = landmark_2d_106.astype(np.float64)
    left, right = (points[:, eye].mean(axis=1) for eye in EYES)
    across = right - left
    distance = np.linalg.norm(across, axis=1)
    result = np.full((len(points), len(ATTRIBUTES)), np.nan, np.float32)
    seen = distance > 1e-3
    if not seen.any():
        return result
    across = across[seen] / distance[seen, None]
    # In the face's own frame, upright, about the middle of the eyes, in distances of the eyes.
    axes = np.stack([across, across[:, ::-1] * [-1, 1]], axis=2)  # n xy axis
    points = (points[seen] - ((left + right) / 2)[seen, None]) @ axes / distance[seen, None, None]
    for column, eye in enumerate(EYES):
        width, height = np.moveaxis(np.ptp(points[:, eye], axis=1), -1, 0)
        openness = height / np.maximum(width, 1e-3)
        is_open = max(np.percentile(openness, OPEN_PERCENTILE), 1e-6)
        result[seen, column] = (openness / is_open - CLOSED_SHARE) / (1 - CLOSED_SHARE)
    brows = -np.mean([points[:, brow, 1].mean(axis=1) for brow in BROWS], axis=0)
    brows = brows - np.median(brows)
    result[seen, 4] = brows / max(*np.abs(np.percentile(brows, EDGE_PERCENTILES)), SMALLEST_BROW_REACH)
    corners = points[:, [OUTER_LIPS[0], OUTER_LIPS[6]]]
    smile = np.ptp(corners[..., 0], axis=1) + points[:, NOSE_TIP, 1] - corners[..., 1].mean(axis=1)
    smile = scipy.ndimage.gaussian_filter1d(smile, SMILE_SMOOTHING_FRAMES, mode="nearest")
    low, high = np.percentile(smile, EDGE_PERCENTILES)
    result[seen, 5] = (smile - low) / max(high - low, SMALLEST_SMILE_REACH)
    lows, highs = np.array(list(ATTRIBUTES.values()), np.float32).T
    return np.clip(result, lows, highs)
