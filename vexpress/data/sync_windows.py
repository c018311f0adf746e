"""What SyncNet compares of a training sample: five of its frames, the face in them, and the speech meanwhile."""

import numpy as np
import torch
from torch import Tensor

from vexpress.data.formats import ClipRecord
from vexpress.data.transforms import Geometry, transform_points
from vexpress.errors import InputError
from vexpress.media.audio import load_audio
from vexpress.media.video import TIMESTAMP_ERROR_SECONDS
from vexpress.syncnet import (
    FPS,
    RATE_HZ,
    STEP_SAMPLES,
    WINDOW_FRAMES,
    WINDOW_SAMPLES,
    WINDOW_STEPS,
    compute_mfcc,
    crop_corners,
    smooth_track,
)

MAX_SPACING_SECONDS = 1.1 / FPS  # of frames, so that 24 fps will do


def window_positions(times: np.ndarray) -> np.ndarray | None:
    """Finds the windows in a sample's frames.

    Args:
        times: (f,) seconds at which its frames are shown, rising.

    Returns:
        (n 5) int64, the frames on show at 25 fps from each frame on, while the frames last; None if they are too few or
        too far apart.
    """
    spacing = np.diff(times).max(initial=0)
    if spacing > MAX_SPACING_SECONDS:
        return None
    wanted = times[:, None] + np.arange(WINDOW_FRAMES) / FPS
    positions = np.searchsorted(times, wanted + TIMESTAMP_ERROR_SECONDS, side="right") - 1
    windows = positions[wanted[:, -1] + TIMESTAMP_ERROR_SECONDS < times[-1] + spacing]
    return windows if len(windows) else None


def sync_window(
    rng: np.random.Generator,
    record: ClipRecord,
    frame_ids: np.ndarray,
    fps: float,
    boxes: np.ndarray,
    geometry: Geometry,
) -> dict[str, Tensor]:
    """Chooses one of a sample's windows.

    Args:
        rng: one number is taken from it.
        record: of the clip; the sound is that of `audio`, or else of the video.
        frame_ids: (f,), rising.
        fps: of the clip.
        boxes: (f 4) px of the clip's frames, the face's.
        geometry: of the sample.

    Returns:
        sync_frames (5,) int64, numbers among the sample's frames; sync_corners (5 2 2) px in them, of SyncNet's crop;
        sync_cepstra (1 13 20) float32.

    Raises:
        InputError: the frames are too few or too far apart, a box is not finite, or the sound cannot be read.
    """
    windows = window_positions(frame_ids / fps)
    if windows is None:
        problem = f"SyncNet compares {WINDOW_FRAMES} frames of {FPS} fps; {len(frame_ids)} frames of {fps:g} fps, "
        problem += f"{frame_ids[1] - frame_ids[0] if len(frame_ids) > 1 else 0} apart, hold none"
        raise InputError(f"{problem}: raise data.num_frames, lower data.sample_rate, or unset it", "sync_loss_weight")
    frames = windows[rng.integers(len(windows))]
    if not np.isfinite(boxes).all():
        raise InputError(f"face_info {record.face_info}: bbox is not finite; extract it again")
    corners = transform_points(crop_corners(smooth_track(boxes)[frames]), geometry)
    corners = np.stack([corners.min(1), corners.max(1)], 1)  # mirroring has exchanged left and right
    samples = load_audio(record.audio or record.video, "audio").resampled_mono(RATE_HZ).numpy()
    start = round(frame_ids[frames[0]] / fps * RATE_HZ) - STEP_SAMPLES  # a step before, since the first lacks a past
    count = WINDOW_STEPS * STEP_SAMPLES + WINDOW_SAMPLES
    part = np.pad(samples, (STEP_SAMPLES, count))[start + STEP_SAMPLES :][:count]
    cepstra = compute_mfcc(np.clip(np.rint(part * 32768), -32768, 32767))[1 : 1 + WINDOW_STEPS]
    return {
        "sync_frames": torch.from_numpy(frames),
        "sync_corners": torch.from_numpy(corners),
        "sync_cepstra": torch.from_numpy(cepstra).T[None].contiguous(),
    }
