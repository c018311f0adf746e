"""By how much sound and lips of a clip are apart, measured by SyncNet."""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from vexpress.media.video import constant_rate
from vexpress.syncnet import (
    FPS,
    MAX_SHIFT,
    RATE_HZ,
    STEPS_PER_FRAME,
    WINDOW_FRAMES,
    SyncNet,
    SyncScore,
    compute_mfcc,
    crop_face,
    encode_frames,
    encode_speech,
    smooth_track,
)

MARGIN_SECONDS = MAX_SHIFT / FPS
"""Of sound before and after a clip, that is compared with its lips."""
MIN_COMPARED_SHARE = 0.5  # of the clip's windows; a shift for which the source has less sound is not considered


@dataclass(frozen=True)
class Speech:
    """The sound of a clip and around it.

    Attributes:
        samples: (n) float32 at 16 kHz, from MARGIN_SECONDS before the clip's start on; whatever where there is none.
        seconds_before: of sound that there is before the clip's start; likewise after its end.
    """

    samples: np.ndarray
    seconds_before: float
    seconds_after: float


def crop_for_syncnet(
    frames: Iterable[np.ndarray], boxes: np.ndarray, fps: Fraction | float, crop_px: int
) -> np.ndarray:
    """Cuts the face out of a clip's frames, at SyncNet's rate.

    Args:
        frames: (H W 3) uint8 RGB, read once.
        boxes: (f 4) px, the face in each of them.
        fps: of the frames.
        crop_px: width and height of the result.

    Returns:
        (g crop_px crop_px 3) uint8 BGR at 25 fps.
    """
    times = [(i / Fraction(fps), np.asarray(i)) for i in range(len(boxes))]
    shown = [int(i) for i in constant_rate(times, FPS)]
    track, crops, position = smooth_track(boxes[shown]), [], 0
    for index, frame in enumerate(frames):
        while position < len(shown) and shown[position] == index:
            crops.append(crop_face(frame, track[position], crop_px))
            position += 1
    return np.stack(crops)


def measure_sync(network: SyncNet, crops: np.ndarray, speech: Speech) -> SyncScore | None:
    """Finds the shift at which lips and sound fit best, by real sound around the clip where there is some.

    Args:
        network: in evaluation mode.
        crops: from `crop_for_syncnet`.
        speech: of the clip.

    Returns:
        The shift, and how clear it is; None for a clip without a window of frames.

    Differs from `syncnet.score_sync`, which compares with zeros beyond the clip's ends: in a clip of 2 s those would
    decide.
    """
    num_windows = len(crops) - WINDOW_FRAMES
    if num_windows < 1:
        return None
    cepstra = compute_mfcc(np.clip(np.rint(speech.samples * 32768), -32768, 32767))
    last = min(num_windows + 2 * MAX_SHIFT, len(cepstra) // STEPS_PER_FRAME - WINDOW_FRAMES)
    audio = encode_speech(network, cepstra, range(last))
    visual = encode_frames(network, crops, range(num_windows))
    # Window j of the sound starts j - MAX_SHIFT frames after the clip does.
    first = MAX_SHIFT - int(speech.seconds_before * FPS)
    end = MAX_SHIFT + len(crops) + int(speech.seconds_after * FPS) - WINDOW_FRAMES
    means = np.full(2 * MAX_SHIFT + 1, np.nan)
    for k in range(len(means)):
        part = slice(max(0, first - k), max(0, min(num_windows, end - k, last - k)))
        if part.stop - part.start >= MIN_COMPARED_SHARE * num_windows:
            ours, theirs = visual[part], audio[part.start + k : part.stop + k]
            means[k] = np.linalg.norm(ours - theirs + 1e-6, axis=1).mean()
    if np.isnan(means).all():
        return None
    best = int(np.nanargmin(means))
    return SyncScore(float(np.nanmedian(means) - means[best]), float(means[best]), MAX_SHIFT - best)


def count_samples(seconds: float) -> int:
    """Samples of so many seconds at SyncNet's rate."""
    return round(seconds * RATE_HZ)
