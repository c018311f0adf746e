"""The mouth of a drawn face: aperture and width in each frame, measured by its colours."""

import cv2
import numpy as np
import scipy.ndimage as ndi

from scripts.demo.drawn_faces import EYE_X, EYE_Y, MOUTH_HALF_WIDTH, NOSE_Y
from vexpress.errors import InputError

# The box that is looked at, in face units (see drawn_faces) from the middle of the mouth's column and from the ears.
PX_PER_UNIT = 48
LEFT, RIGHT, TOP, BOTTOM = -0.7, 0.7, 0.36, 1.3
WIDTH_PX, HEIGHT_PX = round((RIGHT - LEFT) * PX_PER_UNIT), round((BOTTOM - TOP) * PX_PER_UNIT)
X, Y = np.meshgrid(LEFT + (np.arange(WIDTH_PX) + 0.5) / PX_PER_UNIT, TOP + (np.arange(HEIGHT_PX) + 0.5) / PX_PER_UNIT)
CORE = (np.abs(X) < 0.2) & (np.abs(Y - 0.78) < 0.16)  # in the middle of every mouth
CHEEKS = (np.abs(X) > 0.25) & (np.abs(X) < 0.5) & (Y < 0.5)
# With yaw, the corners of the mouth move by this much of what the nose moves by, both relative to the eyes.
CORNERS_PER_NOSE = -0.41

LARGEST_REDNESS, SMALLEST_REDNESS = 0.2, 0.03  # of skin, in logarithms, at which a pixel is of the mouth
SHARE_OF_LIPS = 0.8  # pale lips count from this share of their own redness on
DARKNESS = 0.6  # likewise, also of teeth, which are brighter than skin
MASK_LEVEL = 0.4
CLOSED_HEIGHT, HEIGHT_PER_APERTURE = 0.165, 0.33  # mean height over the width, in face units, lips included
WIDTH_BIAS = 0.02  # of the half width in face units, by blur
STILL = 0.02  # standard deviation of an aperture that does not move: three times what is read from closed mouths
HEAD_SMOOTHING_FRAMES = 3  # over size and turn of the head, since keypoints are noisy


def measure_mouth(frames: np.ndarray, kps: np.ndarray) -> np.ndarray:
    """Measures the mouth of a drawn face by its colours relative to the cheeks'.

    The head is set upright by eyes and nose. What is redder or darker than skin, and what lies between such pixels,
    is mouth; what has no counterpart on the other side of the face is hair or background. Aperture comes from the mean
    height of that region, width from its spread along x, so blur matters little.

    Args:
        frames: (f H W 3) uint8 RGB, neighbours in time.
        kps: (f 3 2) or (f 5 2) px: left eye, right eye, nose.

    Returns:
        (f 2) float32: aperture and width on the scale of `mouth_from_speech`, 0..1 but for errors (people's lips
        differ in thickness, so that a constant of about 0.1 per person stays). NaN where there is no face or mouth.
    """
    frames, kps = np.asarray(frames), np.asarray(kps, np.float64)[:, :3]
    if len(frames) != len(kps):
        raise InputError(f"{len(frames)} frames with the keypoints of {len(kps)}: needed are keypoints per frame")
    mouth = np.full((len(frames), 2), np.nan, np.float32)
    known = np.isfinite(kps).all((1, 2)) & (np.linalg.norm(kps[:, 1] - kps[:, 0], axis=1) > 1)
    if known.any():
        mouth[known] = [_measure(mask) for mask in mouth_masks(upright_mouths(frames[known], kps[known]))]
    return mouth


def upright_mouths(frames: np.ndarray, kps: np.ndarray) -> np.ndarray:
    """Cuts out the box around the mouth, upright and at one size: (f H W 3) float64."""
    eyes = kps[:, 1] - kps[:, 0]
    distance = np.linalg.norm(eyes, axis=1)
    right = eyes / distance[:, None]
    down = np.stack([-right[:, 1], right[:, 0]], 1)
    middle = kps[:, :2].mean(1)
    nose = kps[:, 2] - middle
    across = distance / (2 * EYE_X)  # px per face unit, foreshortened by yaw
    along = np.maximum((nose * down).sum(1) / (NOSE_Y - EYE_Y), 0.3 * across)
    turn = (nose * right).sum(1) / across
    across, along, turn = (
        ndi.gaussian_filter1d(values, HEAD_SMOOTHING_FRAMES, mode="nearest") for values in (across, along, turn)
    )
    steps = right * across[:, None], down * along[:, None]  # px of the frame per face unit
    start = middle + steps[0] * (CORNERS_PER_NOSE * turn[:, None] + LEFT) + steps[1] * (TOP - EYE_Y)
    shrink = min(1.0, PX_PER_UNIT / np.median(along))  # large faces first, else pixels would be skipped
    boxes = []
    for frame, x, y, corner in zip(frames, *steps, start):
        if shrink < 1:
            frame = cv2.resize(frame, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        matrix = np.stack([x / PX_PER_UNIT, y / PX_PER_UNIT, corner], 1) * shrink
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        box = cv2.warpAffine(frame, matrix, (WIDTH_PX, HEIGHT_PX), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        boxes.append(box)
    return np.stack(boxes).astype(np.float64)


def mouth_masks(boxes: np.ndarray) -> np.ndarray:
    """(f H W 3) -> (f H W) 0..1: how much a pixel is of lips, teeth, tongue or the opening."""
    logs = np.log(boxes + 4)
    redness = logs[..., 0] - logs[..., 1:].mean(-1)
    darkness = -np.log(boxes @ [0.3, 0.59, 0.11] + 4)
    redness -= np.median(redness[:, CHEEKS], 1)[:, None, None]
    darkness -= np.median(darkness[:, CHEEKS], 1)[:, None, None]
    columns = np.flatnonzero(CORE.any(0))
    lips = np.median(np.where(CORE, redness, -np.inf).max(1)[:, columns], 1)
    limit = np.clip(SHARE_OF_LIPS * lips, SMALLEST_REDNESS, LARGEST_REDNESS)[:, None, None]
    teeth = 0.5  # less red than skin, by less than lips are redder
    masks = np.hypot(np.where(redness > 0, redness, teeth * redness) / limit, darkness / DARKNESS)
    masks = np.minimum(masks, 1)
    mirrored = ndi.maximum_filter(masks[:, :, ::-1], (1, 3, 11))  # keypoints and so the middle are not exact
    return np.minimum(masks, mirrored)


def only_mouth(mask: np.ndarray) -> np.ndarray | None:
    """One mask (H W) without what does not hang together with the mouth, and filled; None without a mouth."""
    labels, num_parts = ndi.label(mask > MASK_LEVEL, np.ones((3, 3)))
    weights = np.bincount(labels[CORE], mask[CORE], minlength=num_parts + 1)
    weights[0] = 0
    if not weights.any():
        return None
    mask = mask * ndi.binary_dilation(labels == weights.argmax(), np.ones((5, 5)))
    return np.minimum(np.maximum.accumulate(mask, 0), np.maximum.accumulate(mask[::-1], 0)[::-1])


def _measure(mask: np.ndarray) -> tuple[float, float]:
    """Aperture and width of one mask (H W)."""
    mask = only_mouth(mask)
    if mask is None:
        return np.nan, np.nan
    profile = mask.max(0) / mask.max(0).sum()
    centre = profile @ X[0]
    half_width = np.sqrt(3 * profile @ (X[0] - centre) ** 2)  # of a uniform profile
    height = mask.sum() / PX_PER_UNIT**2 / max(2 * half_width, 0.3)
    low, high = MOUTH_HALF_WIDTH
    return (height - CLOSED_HEIGHT) / HEIGHT_PER_APERTURE, (half_width - WIDTH_BIAS - low) / (high - low)
