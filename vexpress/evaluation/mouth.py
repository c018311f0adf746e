"""What the mouth does in each frame, from the landmarks of any face."""

import numpy as np

from vexpress.data.transforms import INNER_LIPS, OUTER_LIPS


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
