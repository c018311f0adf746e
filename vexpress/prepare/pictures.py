"""What the frames of a clip are like: blur, light, stillness, turned and covered faces. Pure functions of the clip."""

from dataclasses import dataclass, field

import cv2
import numpy as np

from vexpress.data.formats import FaceInfo
from vexpress.media.faces import Face

# ---- one frame -----------------------------------------------------------------------------------------------------

FACE_PX = 32  # side of an aligned face
# Places of the five keypoints in an aligned face, in shares of its side. Source: the usual 112 px template of ArcFace.
TEMPLATE = np.array([(38.29, 51.70), (73.53, 51.50), (56.03, 71.74), (41.55, 92.37), (70.73, 92.20)]) / 112
STILL_PX, STILL_BLOCKS = 64, 8
BLUR_PX = 128  # side of the face's box where blur is measured: that of another face of the same sharpness is the same
BLUR_EVERY = 5  # frames


def align_face(frame: np.ndarray, kps: np.ndarray) -> np.ndarray:
    """Turns, scales and moves a face to the template.

    Args:
        frame: (H W 3) uint8 RGB.
        kps: (5 2) px, finite and not all the same.

    Returns:
        (FACE_PX FACE_PX 3) uint8.
    """
    source, target = (points @ [1, 1j] for points in (kps.astype(float), TEMPLATE * FACE_PX))
    centred = source - source.mean()
    # The similarity of least squares, z -> a z + b in complex numbers.
    a = np.vdot(centred, target - target.mean()) / max(np.vdot(centred, centred).real, 1e-9)
    b = target.mean() - a * source.mean()
    matrix = np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])
    if abs(a) < 0.5:  # else pixels are skipped
        size = [max(1, round(2 * abs(a) * length)) for length in frame.shape[1::-1]]
        matrix[:, :2] *= np.array(frame.shape[1::-1]) / size
        frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    return cv2.warpAffine(frame, matrix, (FACE_PX, FACE_PX), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def compute_blur(frame: np.ndarray, box: np.ndarray) -> float:
    """Computes how blurred the face in a frame is: 0 sharp .. 1, by how little another blur changes it.

    Source: Crete et al., "The blur effect" (2007), as scikit-image has it.
    """
    from skimage.measure import blur_effect

    height, width, _ = frame.shape
    x1, y1, x2, y2 = np.rint(np.clip(box, 0, (width, height, width, height))).astype(int)
    face = cv2.cvtColor(frame[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)], cv2.COLOR_RGB2GRAY)
    interpolation = cv2.INTER_AREA if max(face.shape) > BLUR_PX else cv2.INTER_CUBIC
    with np.errstate(divide="ignore", invalid="ignore"):
        blur = blur_effect(cv2.resize(face, (BLUR_PX, BLUR_PX), interpolation=interpolation))
    return float(blur) if np.isfinite(blur) else 1.0  # of one colour


# ---- all frames ----------------------------------------------------------------------------------------------------


@dataclass
class FrameLook:
    """What is kept of each frame as it passes: a few KB.

    Attributes:
        thumbnails: (f STILL_PX STILL_PX) uint8, whole frames in grey.
        faces: (f FACE_PX FACE_PX 3) uint8, aligned; None where there is none.
        blur: of every BLUR_EVERY-th frame with a face.
    """

    thumbnails: list[np.ndarray] = field(default_factory=list)
    faces: list[np.ndarray | None] = field(default_factory=list)
    blur: list[float] = field(default_factory=list)

    def add(self, frame: np.ndarray, face: Face | None, source: np.ndarray, place: tuple[int, int, float]) -> None:
        """Looks at a frame.

        Args:
            frame: (H W 3) uint8 RGB, of the clip.
            face: in it, if there is one.
            source: (H W 3) uint8 RGB, what it was cut out of: how sharp it is does not depend on the clip's size.
            place: left, top in px of the source, and its px per px of the frame.
        """
        if face is not None and len(self.faces) % BLUR_EVERY == 0:
            left, top, scale = place
            self.blur.append(compute_blur(source, face.bbox * scale + np.array([left, top, left, top])))
        self.faces.append(None if face is None else align_face(frame, face.kps))
        grey = cv2.resize(frame, (STILL_PX, STILL_PX), interpolation=cv2.INTER_AREA)
        self.thumbnails.append(cv2.cvtColor(grey, cv2.COLOR_RGB2GRAY))


STILL_LEVELS = 1.5  # of 255, in the block that changes most; coding a still picture changes less
# A place is covered where it differs from what it mostly shows by more than 20 of 255 levels and three times as much as
# it usually does, which for lips is much. Compared are nose, cheeks, mouth and chin: hair and background do not count.
COVERED_LEVELS, COVERED_DEVIATIONS = 20, 3
COVERED_MIDDLE, COVERED_RADIUS = (0.5, 0.64), 0.34  # of an aligned face
SMOOTHING_FRAMES = 5  # a single frame's glitch of a detector is no turn, and no other person
EVEN_NOSE_DEPTH = 0.55  # of the nose's tip before the eyes, in distances between them


def measure_pictures(look: FrameLook, info: FaceInfo, fps: float) -> dict[str, float]:
    """Measures a clip's pictures.

    Args:
        look: at its frames.
        info: the face in each of them.
        fps: frames per second.

    Returns:
        blur, brightness, still_seconds, turn_degrees, occlusion, identity; see docs/data.md.
    """
    faces = np.stack([face for face in look.faces if face is not None])
    values = {
        "blur": float(np.median(look.blur)) if look.blur else 1.0,
        "brightness": float(faces.mean() / 255),
        "still_seconds": longest_still(np.stack(look.thumbnails)) / fps,
        "turn_degrees": largest_turn(info.kps),
        "occlusion": measure_occlusion(faces),
    }
    if info.embedding is not None:
        values["identity"] = lowest_similarity(info.embedding)
    return values


def longest_still(thumbnails: np.ndarray) -> int:
    """Counts the frames of the longest run in which (f STILL_PX STILL_PX) uint8 stay as the run's first frame is."""
    longest = start = 0
    blocks = thumbnails.reshape(len(thumbnails), STILL_BLOCKS, -1, STILL_BLOCKS, STILL_PX // STILL_BLOCKS)
    blocks = blocks.astype(np.int16)
    for index in range(1, len(blocks)):
        if np.abs(blocks[index] - blocks[start]).mean((1, 3)).max() > STILL_LEVELS:
            start = index
        longest = max(longest, index - start)
    return longest


def largest_turn(kps: np.ndarray) -> float:
    """Estimates the largest turn of the head to a side, in degrees, by how far the nose is from between the eyes.

    Args:
        kps: (f 5 2) px.
    """
    across = kps[:, 1] - kps[:, 0]
    away = ((kps[:, 2] - kps[:, :2].mean(1)) * across).sum(1) / np.maximum((across**2).sum(1), 1e-9)
    turns = np.degrees(np.arctan(away / EVEN_NOSE_DEPTH))
    return float(np.abs(_smooth(turns)).max())


def measure_occlusion(faces: np.ndarray) -> float:
    """Measures the largest share of the face that something covers for a while.

    Not seen are what covers it for more than half of the time, and what has the skin's own colour.

    Args:
        faces: (f FACE_PX FACE_PX 3) uint8, aligned.
    """
    faces = faces.astype(np.float32)
    faces -= np.median(faces - np.median(faces, axis=0), axis=(1, 2), keepdims=True)  # light that changes
    differences = np.abs(faces - np.median(faces, axis=0)).max(3)
    is_covered = differences > COVERED_LEVELS + COVERED_DEVIATIONS * np.median(differences, axis=0)
    y, x = (np.mgrid[:FACE_PX, :FACE_PX] + 0.5) / FACE_PX
    inner = np.hypot(x - COVERED_MIDDLE[0], y - COVERED_MIDDLE[1]) < COVERED_RADIUS
    return float(_smooth(is_covered[:, inner].mean(1)).max())


def lowest_similarity(embeddings: np.ndarray) -> float:
    """Computes the lowest cosine of any frame's embedding (f d) with that of the frame that is most like all."""
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-9)
    typical = unit[(unit @ unit.sum(0)).argmax()]
    return float(_smooth(unit @ typical).min())


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running median of (f,)."""
    padded = np.pad(values, SMOOTHING_FRAMES // 2, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, SMOOTHING_FRAMES), axis=1)
