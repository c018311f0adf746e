"""Where to cut a video of a talking person: in time, where the face is lost or jumps, and in each frame, around it."""

import itertools
import math
from collections.abc import Collection
from dataclasses import dataclass

import cv2
import numpy as np

from vexpress.media.faces import CROP_FACE_HEIGHT

MIN_OVERLAP = 0.3  # intersection over union; from one frame to the next, less than this is a cut or another person


@dataclass(frozen=True)
class Piece:
    """Frames start to stop (exclusive) of a source at the constant rate.

    Attributes:
        boxes: (n 4) px of the source: the face that is followed, in the frames in which it was seen.
        seen: (n) numbers of those frames.
        num_bad: frames that do not show exactly one face.
        is_cut: it starts or ends at a cut.
    """

    start: int
    stop: int
    boxes: np.ndarray
    seen: np.ndarray
    num_bad: int
    is_cut: bool = False

    @property
    def num_frames(self) -> int:
        return self.stop - self.start


def split_into_pieces(
    boxes: list[np.ndarray], max_gap: int, max_frames: int, cuts: Collection[int] = ()
) -> list[Piece]:
    """Cuts a source where it is cut, the face is lost or jumps, and long stretches into equal parts.

    No frame is left out.

    Args:
        boxes: per frame the faces' (n 4) px, the largest first.
        max_gap: longest gap, in frames, in which the face may be missing.
        max_frames: longest piece that shows a face.
        cuts: first frames of new shots.
    """
    runs: list[dict[int, np.ndarray]] = []  # frame -> box of the face that is followed
    shots = np.searchsorted(sorted(cuts), range(len(boxes)), side="right")  # frame -> number of its shot
    for index, candidates in enumerate(boxes):
        if not len(candidates):
            continue
        last = next(reversed(runs[-1])) if runs else None
        if last is not None and index - last <= max_gap + 1 and shots[index] == shots[last]:
            overlaps = _overlaps(candidates, runs[-1][last])
            if overlaps.max() >= MIN_OVERLAP:
                runs[-1][index] = candidates[overlaps.argmax()]
                continue
        runs.append({index: candidates[0]})

    edges = [0]
    for run in runs:
        start, length = min(run), max(run) + 1 - min(run)
        num_parts = math.ceil(length / max_frames)
        edges += [start + length * part // num_parts for part in range(num_parts + 1)]
    edges.append(len(boxes))
    followed = {index: box for run in runs for index, box in run.items()}
    pieces = []
    for start, stop in itertools.pairwise(edges):
        if stop > start:
            seen = np.array([index for index in range(start, stop) if index in followed], int)
            num_bad = sum(len(candidates) != 1 for candidates in boxes[start:stop])
            own = np.array([followed[index] for index in seen]).reshape(-1, 4)
            pieces.append(Piece(start, stop, own, seen, num_bad, bool({start, stop} & {*cuts})))
    return pieces


def _overlaps(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Intersection over union of each of the boxes (n 4) with box (4,)."""
    shared = (np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])).clip(0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return shared / (areas + (box[2:] - box[:2]).prod() - shared)


def compute_crop(
    boxes: np.ndarray, width: int, height: int, margin: float, face_height: float = CROP_FACE_HEIGHT
) -> tuple[int, int, int]:
    """Computes the one square that is cut out of all frames of a clip.

    Its side is the median face's and twice the margin, or more where the face moves farther. It is moved into the
    frame, and made smaller to fit, but never so that it cuts a face that the frame holds: then it reaches out.

    Args:
        boxes: (n 4) px, the face in each frame.
        width: of the frame in px, likewise height.
        margin: in sides of the face's box.
        face_height: where in the square the middle of the face is, from the top.

    Returns:
        Left, top and side in px.

    Differs from `media.faces.head_and_shoulders_box`, with which it agrees for one box at margin 0.6, by taking many.
    """
    limits = np.array([width, height, width, height])
    boxes = boxes.clip(0, limits)
    x1, y1, x2, y2 = *boxes[:, :2].min(0), *boxes[:, 2:].max(0)
    extent = max(x2 - x1, y2 - y1, 1)
    face = np.median((boxes[:, 2:] - boxes[:, :2]).max(1))
    wanted = max(face * (1 + 2 * margin), extent / (2 * min(face_height, 1 - face_height)))
    side = max(round(min(wanted, width, height)), math.ceil(extent))
    left = (x1 + x2) / 2 - side / 2
    top = min(max((y1 + y2) / 2 - side * face_height, y2 - side), y1)
    left, top = (
        min(max(round(edge), min(0, length - side)), max(0, length - side))
        for edge, length in ((left, width), (top, height))
    )
    return left, top, side


def crop_frame(frame: np.ndarray, left: int, top: int, side: int, size: int) -> np.ndarray:
    """Cuts a square out of frame (H W 3) uint8 and resizes it to (size size 3); outside, border pixels are repeated."""
    height, width, _ = frame.shape
    outside = max(0, -left, -top, left + side - width, top + side - height)
    if outside:
        frame = cv2.copyMakeBorder(frame, *4 * (outside,), cv2.BORDER_REPLICATE)
    square = frame[top + outside : top + outside + side, left + outside : left + outside + side]
    interpolation = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
    return cv2.resize(square, (size, size), interpolation=interpolation)
