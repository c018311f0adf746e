"""What the mouth does in each frame: meters, and the package's own, which reads the landmarks of any face."""

from collections.abc import Callable, Mapping

import numpy as np

from vexpress.data.transforms import INNER_LIPS, OUTER_LIPS
from vexpress.errors import InputError
from vexpress.evaluation.faces import FaceTrack
from vexpress.evaluation.settings import LANDMARKS

MouthMeter = Callable[[np.ndarray, np.ndarray | None, FaceTrack | None], np.ndarray | None]
"""Frames (f H W 3) uint8 RGB, target keypoints (f 5 2) px, and the faces found -> (f 2): aperture and width of the
mouth, on a scale of the meter's own; None if it cannot tell. Target and faces are None where they are not known."""


def choose_meter(name: str, meters: Mapping[str, MouthMeter], has_labels: bool) -> MouthMeter:
    """Finds a mouth meter by name.

    Args:
        name: LANDMARKS, one of `meters`, or "auto": for clips with labels the first of `meters`, else LANDMARKS.
        meters: those beside LANDMARKS.
        has_labels: the clip's data set says what the mouth does.

    Raises:
        InputError: there is no such meter.
    """
    if name == "auto":
        name = next(iter(meters), LANDMARKS) if has_labels else LANDMARKS
    if name == LANDMARKS:
        return measure_by_landmarks
    if name not in meters:
        raise InputError(f"allowed are auto, {', '.join([LANDMARKS, *meters])}", "mouth_meter", name)
    return meters[name]


def measure_by_landmarks(frames: np.ndarray, target: np.ndarray | None, faces: FaceTrack | None) -> np.ndarray | None:
    """The meter LANDMARKS, see `MouthMeter`."""
    if faces is None or faces.landmarks is None:
        return None
    return mouth_from_landmarks(faces.landmarks, faces.kps)


def mouth_from_landmarks(landmarks: np.ndarray, kps: np.ndarray) -> np.ndarray:
    """Measures the mouth of any face by its landmarks.

    Args:
        landmarks: (f 106 2) px, in insightface's order.
        kps: (f 3 2) or (f 5 2) px: left eye, right eye, nose.

    Returns:
        (f 2) float32: height of the opening, and width between the corners, in distances between the eyes (both move
        with yaw alike). NaN where landmarks are.
    """
    upper, lower = landmarks[:, INNER_LIPS[1:4]].mean(1), landmarks[:, INNER_LIPS[5:8]].mean(1)
    corners = landmarks[:, OUTER_LIPS[6]] - landmarks[:, OUTER_LIPS[0]]
    eyes = np.linalg.norm(kps[:, 1] - kps[:, 0], axis=-1)
    lengths = np.stack([np.linalg.norm(lower - upper, axis=-1), np.linalg.norm(corners, axis=-1)], 1)
    return (lengths / eyes[:, None]).astype(np.float32)
