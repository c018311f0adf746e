"""Lids, gaze, brows and smile of a drawn face in each frame, measured by its colours and the places of its parts."""

import cv2
import numpy as np
import scipy.ndimage as ndi

from scripts.demo.drawn_faces import (
    BROW_LIFT,
    EYE_X,
    EYE_Y,
    LID_HEIGHT,
    MOUTH_Y,
    NOSE_Y,
    SMILE_LIFT,
)
from scripts.demo.mouth_meter import HEAD_SMOOTHING_FRAMES, X, Y, mouth_masks, only_mouth, upright_mouths
from vexpress.models.attributes import ATTRIBUTES

# The box around an eye that is looked at, in face units (see drawn_faces) from the eye's keypoint.
PX_PER_UNIT = 64
REACH_X, ABOVE, BELOW = 0.3, 0.56, 0.34
EYE_WIDTH_PX, EYE_HEIGHT_PX = round(2 * REACH_X * PX_PER_UNIT), round((ABOVE + BELOW) * PX_PER_UNIT)
EYE_XS = -REACH_X + (np.arange(EYE_WIDTH_PX) + 0.5) / PX_PER_UNIT
EYE_YS = -ABOVE + (np.arange(EYE_HEIGHT_PX) + 0.5) / PX_PER_UNIT
CHEEK_ROWS, CHEEK_COLUMNS = EYE_YS > 0.22, np.abs(EYE_XS) < 0.2

EYE_ROWS, EYE_COLUMNS = (EYE_YS > -0.17) & (EYE_YS < 0.17), np.abs(EYE_XS) < 0.13  # of lids, all within the opening
SKIN_DISTANCE = 0.22  # of logarithms of colours, at which a pixel is no skin
CLOSED_HEIGHT, LID_RANGE = 0.06, 1.8 * LID_HEIGHT  # of the opening with its line, over columns of the middle
GAZE_ROWS, GAZE_COLUMNS = (EYE_YS > -0.06) & (EYE_YS < 0.12), np.abs(EYE_XS) < 0.18
GAZE_REACH = (0.06, 0.025)  # of the middle of the iris, in face units
SMALLEST_LID = 0.55  # below, the lid hides where the eye looks
BROW_COLUMNS = (np.abs(EYE_XS) > 0.1) & (np.abs(EYE_XS) < 0.22)
BROW_ROWS = (EYE_YS > -0.5) & (EYE_YS < -0.13)
BROW_REST, CORNER = -0.285, 0.8  # lower edge of the brow; where the corners of the mouth are, of its half width
APERTURE_SHARE = 0.13  # of the opening, by which the corners lie higher than the middle of the mouth at rest


def measure_attributes(frames: np.ndarray, kps: np.ndarray) -> np.ndarray:
    """Measures the attributes of a drawn face, whose head is set upright by eyes and nose.

    Lids: the height of what is no skin, in the middle of the eye. Gaze: where the dark of iris and pupil is, relative
    to the keypoint of the eye; not known where the lid hides it. Brows: the lower edge of what is no skin above the
    sides of the eye. Smile: how much higher than at rest the sides of the mouth are.

    Args:
        frames: (f H W 3) uint8 RGB, neighbours in time.
        kps: (f 3 2) or (f 5 2) px: left eye, right eye, nose.

    Returns:
        (f 6) float32 in the order of `ATTRIBUTES`, on the scale of `Motion.attributes` but for errors, and for a
        constant per person. NaN where it cannot be seen.
    """
    frames, kps = np.asarray(frames), np.asarray(kps, np.float64)[:, :3]
    result = np.full((len(frames), len(ATTRIBUTES)), np.nan, np.float32)
    eyes = [_eye_boxes(frames, kps, side) for side in (0, 1)]
    lids = np.stack([_measure_lids(box) for box in eyes], 1)
    result[:, :2] = lids
    gaze = np.stack([_measure_gaze(box) for box in eyes])  # eye frame xy
    gaze[(lids < SMALLEST_LID).T] = np.nan
    seen = np.isfinite(gaze[..., 0]).any(0)
    result[seen, 2:4] = np.nanmean(gaze[:, seen], axis=0)
    result[:, 4] = np.mean([_measure_brow(box) for box in eyes], axis=0)
    result[:, 5] = [_measure_smile(mask) for mask in mouth_masks(upright_mouths(frames, kps))]
    return result


def _eye_boxes(frames: np.ndarray, kps: np.ndarray, side: int) -> np.ndarray:
    """Cuts out the box around an eye, upright and at one size: (f h w 3) float64."""
    across = kps[:, 1] - kps[:, 0]
    distance = np.linalg.norm(across, axis=1)
    right = across / distance[:, None]
    down = np.stack([-right[:, 1], right[:, 0]], 1)
    nose = kps[:, 2] - kps[:, :2].mean(1)
    wide = distance / (2 * EYE_X)  # px per face unit, foreshortened by yaw
    high = np.maximum((nose * down).sum(1) / (NOSE_Y - EYE_Y), 0.3 * wide)
    wide, high = (ndi.gaussian_filter1d(values, HEAD_SMOOTHING_FRAMES, mode="nearest") for values in (wide, high))
    steps = right * wide[:, None], down * high[:, None]
    start = kps[:, side] - steps[0] * REACH_X - steps[1] * ABOVE
    boxes = []
    for frame, x, y, corner in zip(frames, *steps, start):
        # Pixel i of the box covers i to i + 1, and OpenCV counts from the middle of a pixel.
        corner = corner + (x + y) / PX_PER_UNIT / 2 - 0.5
        matrix = np.stack([x / PX_PER_UNIT, y / PX_PER_UNIT, corner], 1)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        size = (EYE_WIDTH_PX, EYE_HEIGHT_PX)
        boxes.append(cv2.warpAffine(frame, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE))
    return np.stack(boxes).astype(np.float64)


def _from_skin(boxes: np.ndarray) -> np.ndarray:
    """(f h w 3) -> (f h w): distance of a pixel's colour from that of the cheek below, in logarithms."""
    logs = np.log(boxes + 8)
    skin = np.median(logs[:, CHEEK_ROWS][:, :, CHEEK_COLUMNS], axis=(1, 2))
    return np.linalg.norm(logs - skin[:, None, None], axis=-1)


def _measure_lids(boxes: np.ndarray) -> np.ndarray:
    """Openness (f)."""
    share = np.minimum(_from_skin(boxes) / SKIN_DISTANCE, 1)[:, EYE_ROWS][:, :, EYE_COLUMNS]
    height = share.sum(1).mean(1) / PX_PER_UNIT
    return (height - CLOSED_HEIGHT) / LID_RANGE


def _measure_gaze(boxes: np.ndarray) -> np.ndarray:
    """Where the dark of the eye is (f 2)."""
    grey = boxes[:, GAZE_ROWS][:, :, GAZE_COLUMNS] @ [0.3, 0.59, 0.11]
    white = np.percentile(grey, 85, axis=(1, 2))[:, None, None]
    darkness = np.clip(white - grey, 0, None) ** 2
    total = darkness.sum((1, 2))
    x = (darkness.sum(1) @ EYE_XS[GAZE_COLUMNS]) / total
    y = (darkness.sum(2) @ EYE_YS[GAZE_ROWS]) / total
    return np.stack([x, y - 0.02], 1) / GAZE_REACH


def _measure_brow(boxes: np.ndarray) -> np.ndarray:
    """How high the lower edge of the brow is (f)."""
    share = _from_skin(boxes)[:, BROW_ROWS][:, :, BROW_COLUMNS]
    ys = EYE_YS[BROW_ROWS]
    level = 0.5 * np.percentile(share.max(1), 50)  # of a brow; hair may be further from skin
    share = np.minimum(share / level / 2, 1)
    free = 1 - np.maximum.accumulate(share[:, ::-1], axis=1)[:, ::-1]  # skin, seen from the eye upwards
    edge = ys[-1] - free.sum(1) / PX_PER_UNIT
    return (BROW_REST - edge.mean(1)) / BROW_LIFT


def _measure_smile(mask: np.ndarray) -> float:
    """How much higher than at rest the sides of a mouth are; NaN without a mouth."""
    mask = only_mouth(mask)
    if mask is None:
        return np.nan
    columns = mask.max(0)
    profile = columns / columns.sum()
    centre = profile @ X[0]
    half_width = np.sqrt(3 * profile @ (X[0] - centre) ** 2)
    across = (X - centre) / half_width
    sides = mask * (np.abs(np.abs(across) - CORNER) < 0.15)
    height = mask[:, np.abs(across[0]) < 0.2].sum(0).mean() * (Y[1, 0] - Y[0, 0])
    y = (sides * Y).sum() / sides.sum()
    return float((MOUTH_Y + 0.02 * CORNER**2 + APERTURE_SHARE * height - y) / (SMILE_LIFT * CORNER**2))
