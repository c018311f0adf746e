"""Figures of regenerated clips: does the mouth follow the speech, does the picture show the person, does it flicker?"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from scripts.demo.drawn_faces import probe_errors
from scripts.demo.heldout_clips import HeldoutClip
from scripts.demo.make_drawn_dataset import ENCODING
from scripts.demo.mouth_meter import STILL, measure_mouth
from vexpress.diffusion.windows import context_windows
from vexpress.media.faces import FaceAnalyzer
from vexpress.media.video import read_frames, write_video

LARGEST_LAG = 5  # frames
FRAME_STEP = 4  # between frames whose face is detected
SMALLEST_MOVEMENT = 1e-6  # standard deviation, below which a correlation counts as 0


def correlation_or_zero(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's r of two tracks (f) over the frames where both are known; 0 where one does not move."""
    known = np.isfinite(one) & np.isfinite(other)
    one, other = one[known], other[known]
    if len(one) < 2 or min(one.std(), other.std()) < SMALLEST_MOVEMENT:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def abs_r_unless_still(measured: np.ndarray, true: np.ndarray) -> float:
    """Absolute r of a measured aperture (f); 0 where it moves by less than `STILL`, since r would be of noise."""
    return abs(correlation_or_zero(measured, true)) if np.nanstd(measured) >= STILL else 0.0


def best_lag(measured: np.ndarray, true: np.ndarray) -> int:
    """The shift, in frames, at which two tracks (f) agree best; positive where the measured one is late."""
    num_frames = len(true)

    def r_at(lag: int) -> float:
        first, last = max(0, lag), num_frames + min(0, lag)
        return correlation_or_zero(measured[first:last], true[first - lag : last - lag])

    return max(range(-LARGEST_LAG, LARGEST_LAG + 1), key=lambda lag: (r_at(lag), -abs(lag)))


def follow(generated: Sequence[np.ndarray], clips: Sequence[HeldoutClip]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Measures the mouths of generated clips, each (f H W 3) uint8.

    Returns:
        r of aperture and width per clip, (n 2), and the mouths (f 2).
    """
    mouths = [measure_mouth(frames, clip.kps) for frames, clip in zip(generated, clips)]
    r = [[correlation_or_zero(m[:, i], clip.mouth[:, i]) for i in (0, 1)] for m, clip in zip(mouths, clips)]
    return np.array(r), mouths


def least_alike(clip: HeldoutClip, clips: Sequence[HeldoutClip]) -> HeldoutClip:
    """The clip whose mouth moves least like this one's, so that a mouth cannot follow both."""
    return min(clips, key=lambda other: correlation_or_zero(clip.mouth[:, 0], other.mouth[:, 0]))


def swapped_difference(aperture: np.ndarray, heard: HeldoutClip, shown: HeldoutClip) -> float:
    """r of a measured aperture (f) with that of the clip whose speech it had, minus r with that of the clip shown."""
    return correlation_or_zero(aperture, heard.mouth[:, 0]) - correlation_or_zero(aperture, shown.mouth[:, 0])


def colour_error(frames: np.ndarray, clip: HeldoutClip) -> np.ndarray:
    """(3) mean absolute difference, of 255, of skin, hair and background between generated and true frames."""
    triples = zip(frames, clip.frames, clip.probes)
    return np.mean([probe_errors(frame, true, probes) for frame, true, probes in triples], axis=0)


def flicker(frames: np.ndarray) -> float:
    """Mean absolute difference of neighbouring frames (f H W 3) uint8, of 255."""
    return float(np.abs(np.diff(frames.astype(np.int16), axis=0)).mean())


def encoded_alike(frames: np.ndarray, fps: float) -> np.ndarray:
    """Frames (f H W 3) uint8 after the encoding of drawn clips, whose noise is a quarter of what changes in these."""
    with TemporaryDirectory() as folder:
        write_video(path := Path(folder) / "clip.mp4", frames, fps, **ENCODING)
        return np.stack([frame for _, frame in read_frames(path)])


def joint_ratio(frames: np.ndarray, true: np.ndarray, context_frames: int, context_overlap: int) -> float:
    """How much more a clip changes where windows join than elsewhere, relative to the true clip; 1 shows no joint.

    Args:
        frames: (f H W 3) uint8, likewise `true`.
        context_frames: frames of a window.
        context_overlap: frames that windows share; changes into, within and out of these are the joint's.

    Returns:
        NaN for a clip of one window.
    """
    starts = [window[0] for window in context_windows(len(frames), context_frames, context_overlap)][1:]
    is_joint = np.zeros(len(frames) - 1, bool)  # of the change from frame i to frame i + 1
    for start in starts:
        is_joint[start - 1 : start + context_overlap] = True
    changes = [np.abs(np.diff(clip.astype(np.int16), axis=0)).mean(axis=(1, 2, 3)) for clip in (frames, true)]
    if not is_joint.any() or is_joint.all():
        return float("nan")
    own, real = (change[is_joint].mean() / change[~is_joint].mean() for change in changes)
    return float(own / real)


def kps_errors(analyzer: FaceAnalyzer, frames: np.ndarray, kps: np.ndarray, step: int = FRAME_STEP) -> list[float]:
    """Distances of detected eyes and nose from the target (f 3 2), in % of the frame's width; NaN: no face."""
    errors = []
    for frame, target in zip(frames[::step], kps[::step]):
        faces = analyzer.detect(frame)
        found = min((np.linalg.norm(face.v_kps - target, axis=1).mean() for face in faces), default=float("nan"))
        errors.append(100 * found / frame.shape[1])
    return errors
