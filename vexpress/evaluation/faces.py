"""What insightface's models say of a video: where the face is, whose it is, and what follows from that."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vexpress.errors import InputError
from vexpress.media.faces import FaceAnalyzer, find_model_dir
from vexpress.network_files import NetworkFacts, hash_prefix

KPS_SIDE_PX = 512  # distances are given as in a picture of this width
MIN_FOUND_SHARE = 0.5  # of the frames, to follow a face


@dataclass(frozen=True)
class FaceTrack:
    """The largest face of each frame; NaN where there is none. Coordinates in px of the frames.

    Attributes:
        bbox: (f 4) x1 y1 x2 y2.
        kps: (f 5 2).
        embedding: (f d), None without a recognition model.
        landmarks: (f 106 2), None without a landmark model.
    """

    bbox: np.ndarray
    kps: np.ndarray
    embedding: np.ndarray | None
    landmarks: np.ndarray | None

    @property
    def is_found(self) -> np.ndarray:
        """(f) bool."""
        return np.isfinite(self.bbox[:, 0])

    def filled_boxes(self) -> np.ndarray:
        """(f 4): boxes, interpolated where the face is missing.

        Raises:
            InputError: it is missing in more than half of the frames.
        """
        found = np.flatnonzero(self.is_found)
        if len(found) < max(1, MIN_FOUND_SHARE * len(self.bbox)):
            raise InputError(f"a face was found in {len(found)} of {len(self.bbox)} frames only")
        return np.stack([np.interp(np.arange(len(self.bbox)), found, track[found]) for track in self.bbox.T], 1)


def load_analyzer(model_dir: Path, device: torch.device | str) -> tuple[FaceAnalyzer, NetworkFacts]:
    """Loads the detector with recognition and landmarks, as far as the folder holds them.

    Raises:
        InputError: no detector, or a damaged file.
    """
    for modules in (("recognition", "landmark_2d_106"), ("recognition",), ("landmark_2d_106",), ()):
        try:
            analyzer = FaceAnalyzer(model_dir, device, modules)
            break
        except InputError as error:
            if not modules or "no model for" not in str(error):
                raise
    folder = find_model_dir(model_dir)
    kind = " and ".join(["detection", *modules])
    resize = "detection at 512x512, letterboxed"
    return analyzer, NetworkFacts("FaceSim, KpsDis, face crops", str(folder.name), hash_prefix(folder), kind, resize)


def find_faces(frames: np.ndarray, analyzer: FaceAnalyzer) -> FaceTrack:
    """Looks for the face in each of the frames (f H W 3) uint8 RGB."""
    faces = [found[0] if (found := analyzer.detect(frame)) else None for frame in frames]
    known = next((face for face in faces if face is not None), None)

    def stack(name: str) -> np.ndarray | None:
        shape = {"bbox": (4,), "kps": (5, 2)}.get(name) if known is None else np.shape(getattr(known, name))
        if not shape:
            return None
        nothing = np.full(shape, np.nan)
        return np.stack([nothing if face is None else getattr(face, name) for face in faces]).astype(np.float64)

    return FaceTrack(*(stack(name) for name in ("bbox", "kps", "embedding", "landmark_2d_106")))


def measure_similarity(track: FaceTrack, reference: np.ndarray) -> float:
    """Computes the mean cosine x 100 of the frames' embeddings with the reference's (d); NaN without any face."""
    if not track.is_found.any():
        return float("nan")
    found = track.embedding[track.is_found]
    cosines = found @ reference / (np.linalg.norm(found, axis=1) * np.linalg.norm(reference))
    return float(100 * cosines.mean())


def measure_kps_distance(kps: np.ndarray, target: np.ndarray, width_px: int) -> float:
    """Computes the mean distance of V-Kps in px of a picture 512 px wide.

    Args:
        kps: (f 3 2) or (f 5 2) px, found; frames with NaN do not count.
        target: likewise, where they should be.
        width_px: of the frames.

    Returns:
        The distance; NaN without any face.
    """
    distances = np.linalg.norm(kps[:, :3] - target[:, :3], axis=-1).mean(1)
    distances = distances[np.isfinite(distances)]
    return float(distances.mean() * KPS_SIDE_PX / width_px) if len(distances) else float("nan")
