"""Lids, gaze, brows and smile of a drawn face in each frame, measured by its colours and the places of its parts."""

import cv2
import numpy as np
import scipy.ndimage as ndi

from scripts.demo.drawn_faces import (
    BROW_LIFT,
    EYE_X,
    EYE_Y,
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
CLOSED_HEIGHT, LID_RANGE = 0.145, 0.175  # of the opening with its line, in face units
PUPIL_REACH, PUPIL_Y = 0.08, 0.011
GAZE_REACH = (0.053, 0.014)  # of what is measured, in face units
SMALLEST_LIDS = (0.55, 0.85)  # below, the lid hides where the eye looks in x and in y
BROW_Y, BROW_ARCH, BROW_HALF_WIDTH, BROW_DISTANCE = -0.3, 0.06, 0.26, 0.085
BROW_GRID = np.linspace(-1.5, 1.5, 61)
CORNER, CORNER_Y = 0.8, MOUTH_Y - 0.02  # where the sides of a mouth at rest are, in its half width and in face units
APERTURE_SHARE = 0.175  # of the opening, by which the corners lie higher than the middle of the mouth at rest


def measure_attributes(frames: np.ndarray, kps: np.ndarray) -> np.ndarray:
    """Measures the attributes of a drawn face, whose head is set upright by eyes and nose.

    Lids: the height of what is no skin, in the middle of the eye. Gaze: where the dark of iris and pupil is, relative
    to the keypoint of the eye; not known where the lid hides it. Brows: where a line of their
    shape differs most from what is around it. Smile: how much higher than at rest the sides of the mouth are.

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
    for column, smallest in enumerate(SMALLEST_LIDS):
        is_open = (lids >= smallest).T
        seen = is_open.any(0)
        result[seen, 2 + column] = np.average(gaze[:, seen, column], axis=0, weights=is_open[:, seen])
    result[:, 4] = _measure_brows(eyes)
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
    """Where the dark of the eye is (f 2); the darkest counts most, which is the pupil."""
    columns, rows = np.abs(EYE_XS) < 0.18, (EYE_YS > -0.06) & (EYE_YS < 0.16)
    grey = boxes[:, rows][:, :, columns] @ [0.3, 0.59, 0.11]
    white = np.percentile(grey, 85, axis=(1, 2))[:, None, None]
    darkness = np.clip(white - grey, 1e-6, None)
    x = _middle((darkness**2).sum(1), EYE_XS[columns])
    near = np.exp(-0.5 * ((EYE_XS[columns] - x[:, None]) / PUPIL_REACH) ** 2)
    y = _middle((darkness**4 * near[:, None]).sum(2), EYE_YS[rows])
    return np.stack([x, y - PUPIL_Y], 1) / GAZE_REACH


def _middle(weights: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Weighted mean of places (n) by weights (f n)."""
    return weights @ places / weights.sum(1)


def _measure_brows(boxes: list[np.ndarray]) -> np.ndarray:
    """How high the brows of both eyes are (f): where a line of their shape differs most from its surroundings."""
    columns = np.flatnonzero(np.abs(EYE_XS) < 0.22)
    shape = BROW_Y - BROW_ARCH * (1 - (EYE_XS[columns] / BROW_HALF_WIDTH) ** 2)
    fields = [ndi.gaussian_filter1d(_from_skin(box), 1.0, axis=1) for box in boxes]

    def differences(lift: float) -> np.ndarray:
        """(f) how much more a brow at this height differs from skin than its surroundings."""
        brow, above, below = (
            sum(_along(field, shape - BROW_LIFT * lift + y, columns) for field in fields)
            for y in (0, -BROW_DISTANCE, BROW_DISTANCE)
        )
        return brow - (above + below) / 2

    scores = np.stack([differences(lift) for lift in BROW_GRID], 1)
    best = np.clip(scores.argmax(1), 1, len(BROW_GRID) - 2)
    before, at, after = (scores[np.arange(len(scores)), best + step] for step in (-1, 0, 1))
    return BROW_GRID[best] + (before - after) / (before - 2 * at + after - 1e-12) / 2 * (BROW_GRID[1] - BROW_GRID[0])


def _along(field: np.ndarray, ys: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(f) mean of a field (f h w) along a line with these heights, one per column."""
    rows = (ys - EYE_YS[0]) * PX_PER_UNIT
    first = np.clip(np.floor(rows).astype(int), 0, len(EYE_YS) - 2)
    share = np.clip(rows - first, 0, 1)
    return (field[:, first, columns] * (1 - share) + field[:, first + 1, columns] * share).mean(1)


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
    return float((CORNER_Y + APERTURE_SHARE * height - y) / (SMILE_LIFT * CORNER**2))
