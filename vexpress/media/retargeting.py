"""One face's motion on another face: keypoints as six numbers, smoothed, made relative to rest, and put back.

Three points in a plane are six numbers, and these are a head's pose: where its axis is (2), how large it is, its roll,
its turn to the side, and how far the nose is below the eyes, which nodding changes.
"""

import logging
import math

import torch
from torch import Tensor

from vexpress.errors import InputError

logger = logging.getLogger(__name__)

NOSE_AHEAD = 0.36  # of the line through the eyes, in distances of the eyes; typical of faces
EYES_AHEAD = 1.2  # of the axis that the head turns about, likewise
BORDER = 0.02  # of the frame, which a face that moves by itself stays away from
MAX_TURN = math.radians(75)
SAME_FACE = 0.15  # mean distance of the points, in distances of the eyes

SMOOTHING_LEVELS = 5  # the widest average has a standard deviation of about 2 ** (levels - 1) frames at strength 1
SPREAD_FRAMES = 6  # half width of the window in which motion is told from noise, in widths of the level's average
NOISE_MARGIN = 3.0  # what is weaker than this many times the noise's power goes
EDGE_FRAMES = 9  # least frames that a line is fitted to, about which a clip is continued beyond its ends
EDGE_WIDTHS = 3.0  # and so many standard deviations of the average
LARGEST_NOISE = 0.03  # in distances of the eyes; what is more is motion


def measure_pose(kps: Tensor, nose_ahead: float = NOSE_AHEAD) -> Tensor:
    """Measures the pose of faces.

    Args:
        kps: (... 3 2) px: left eye, right eye, nose.
        nose_ahead: how far the nose is ahead of the eyes, in distances of the eyes.

    Returns:
        (... 6) float64: x and y of the head's axis, px; logarithm of the distance of the eyes as seen from the front,
        px; roll and turn, rad; how far the nose is below the line through the eyes, in distances of the eyes.

    Raises:
        InputError: the points of a face lie on one another.
    """
    left, right, nose = kps.double().unbind(-2)
    across = right - left
    distance = across.norm(dim=-1)
    along = across / distance.clamp_min(1e-9)[..., None]
    down = torch.stack([-along[..., 1], along[..., 0]], -1)
    middle = (left + right) / 2
    aside, below = ((nose - middle) * along).sum(-1), ((nose - middle) * down).sum(-1)
    size = torch.hypot(distance, aside / nose_ahead)  # with the turn t: distance = size cos t, aside = ahead sin t
    if size.min() < 1e-3:
        frame = f" of frame {int(size.flatten().argmin())}" if size.ndim else ""
        raise InputError(
            f"keypoints: eyes and nose{frame} lie on one point, so that the face has no size; extract them again"
        )
    turn = torch.atan2(aside / nose_ahead, distance)
    axis = middle - (EYES_AHEAD * size * turn.sin())[..., None] * along
    roll = torch.atan2(along[..., 1], along[..., 0])
    return torch.stack([axis[..., 0], axis[..., 1], size.log(), roll, turn, below / size], -1)


def place_points(pose: Tensor, nose_ahead: float = NOSE_AHEAD) -> Tensor:
    """The keypoints (... 3 2) px float64 of poses (... 6); turns `measure_pose` around."""
    x, y, log_size, roll, turn, below = pose.double().unbind(-1)
    size = log_size.exp()
    along = torch.stack([roll.cos(), roll.sin()], -1)
    down = torch.stack([-roll.sin(), roll.cos()], -1)
    middle = torch.stack([x, y], -1) + (EYES_AHEAD * size * turn.sin())[..., None] * along
    half = (size * turn.cos() / 2)[..., None] * along
    nose = middle + (nose_ahead * size * turn.sin())[..., None] * along + (below * size)[..., None] * down
    return torch.stack([middle - half, middle + half, nose], -2)


def rest_pose(pose: Tensor) -> Tensor:
    """The pose (6) that a head keeps coming back to in a clip (f 6): the median of each number.

    No single frame decides, so that a clip that begins with the head turned away does not turn all of the video.
    """
    return unwrap_roll(pose).median(dim=0).values


def unwrap_roll(pose: Tensor) -> Tensor:
    """Poses (f 6) whose roll runs on beyond half a turn, in place of jumping to the other side."""
    roll = pose[:, 3]
    turns = torch.round(roll.diff() / (2 * math.pi)).cumsum(0)
    return torch.cat([pose[:, :3], torch.cat([roll[:1], roll[1:] - 2 * math.pi * turns])[:, None], pose[:, 4:]], 1)


def relative_motion(pose: Tensor, rest: Tensor) -> Tensor:
    """Motion (f 6) of a head from its rest (6), in units that suit any face: shift in distances of the eyes."""
    size = rest[2].exp()
    motion = unwrap_roll(pose) - rest
    turns = torch.round(motion[:1, 3] / (2 * math.pi)) * 2 * math.pi
    return torch.cat([motion[:, :2] / size, motion[:, 2:3], motion[:, 3:4] - turns, motion[:, 4:]], 1)


def apply_motion(rest: Tensor, motion: Tensor) -> Tensor:
    """The poses (f 6) of a face whose own rest is (6), with a motion (f 6) from `relative_motion`."""
    pose = rest + torch.cat([motion[:, :2] * rest[2].exp(), motion[:, 2:]], 1)
    limit = torch.maximum(
        rest[4].abs(), torch.tensor(MAX_TURN, dtype=pose.dtype)
    )  # beyond it, one eye passes the other
    pose[:, 4] = pose[:, 4].clamp(-limit, limit)
    return pose


def relative_retarget(target_kps: Tensor, reference_kps: Tensor, smoothing: float = 1.0) -> Tensor:
    """Puts the motion of one face on another: the portrait's own geometry and pose, moved as the driving head moves.

    Args:
        target_kps: (f 3 2) px, the driving motion.
        reference_kps: (3 2) px, the face in the reference image, whose pose stands for the driving face's rest.
        smoothing: strength against the noise of face detectors, see `smooth_kps`.

    Returns:
        (f 3 2) px, as the reference.

    Raises:
        InputError: keypoints from which no size of a face can be measured.
    """
    driving = measure_pose(smooth_kps(target_kps, smoothing))
    motion = relative_motion(driving, rest_pose(driving))
    return place_points(apply_motion(measure_pose(reference_kps), motion)).to(target_kps.dtype)


def move_face(reference_kps: Tensor, motion: Tensor, height: int, width: int) -> Tensor:
    """Moves a face, less where it would leave the frame.

    Args:
        reference_kps: (3 2) px, the face at rest.
        motion: (f 6) from rest, see `relative_motion`.
        height: of the frame in px; likewise width.

    Returns:
        (f 3 2) float32 px; all of the motion is scaled by one factor, the largest that keeps every point within the
        frame and away from its border. A face that is outside of it from the start is not held back.
    """
    rest = measure_pose(reference_kps)
    low, high = (torch.tensor([width, height]) * share for share in (BORDER, 1 - BORDER))
    low, high = torch.minimum(low, reference_kps.amin(0)), torch.maximum(high, reference_kps.amax(0))
    for share in torch.linspace(1, 0, 21).tolist():
        kps = place_points(apply_motion(rest, share * motion)).float()
        if ((kps >= low) & (kps <= high)).all():
            break
    if share < 1:
        logger.info("the head moves %.0f %% as much as asked for, so that it stays within the frame", 100 * share)
    return kps


def choose_strategy(target_kps: Tensor, reference_kps: Tensor) -> tuple[str, str]:
    """Chooses how to drive a portrait.

    Args:
        target_kps: (f 3 2) px, the driving motion.
        reference_kps: (3 2) px, the face in the reference image.

    Returns:
        no_retarget where the portrait could be a frame of the driving video, else relative_retarget; and why.
    """
    eyes = (target_kps[:, 1] - target_kps[:, 0]).norm(dim=-1).clamp_min(1e-6)
    distance = (target_kps - reference_kps.to(target_kps)).norm(dim=-1).mean(1) / eyes
    nearest = distance.min().item()
    what = f"the nearest driving frame is {100 * nearest:.0f} % of the distance of the eyes from the portrait's face"
    return ("no_retarget" if nearest < SAME_FACE else "relative_retarget"), what


# ---- smoothing -----------------------------------------------------------------------------------------------------


def smooth_kps(kps: Tensor, strength: float = 1.0) -> Tensor:
    """Removes a detector's noise from keypoints and leaves motion, without delay.

    The clip is taken apart into averages of doubling width and what each loses of the one before. Of every loss that
    share stays, frame by frame, that stands out from the noise: nothing while the head is still, all of a fast motion.
    Keypoints without noise stay as they are.

    Args:
        kps: (f 3 2) px.
        strength: 0 leaves all as it is, 1 suits detectors; more averages longer and takes more for noise.

    Source: the wavelet transform "a trous" (Holschneider et al. 1989) with Wiener's local estimate (Lee 1980).
    """
    if strength <= 0 or len(kps) < EDGE_FRAMES:
        return kps
    tracks = kps.double().flatten(1)  # (f 6)
    levels, widths = [tracks], [2.0**level for level in range(SMOOTHING_LEVELS)]
    for width in widths:
        levels.append(_average(tracks, strength * width / 2))
    # White noise keeps a known share of its power in each loss: that of the difference of the two averages' kernels.
    impulse = torch.zeros(8 * 2**SMOOTHING_LEVELS * math.ceil(strength) + 1, 1, dtype=torch.float64)
    impulse[len(impulse) // 2] = 1
    kernels = [impulse, *(_average(impulse, strength * width / 2) for width in widths)]
    shares = [(fine - coarse).square().sum().item() for fine, coarse in zip(kernels, kernels[1:])]
    eyes = (kps[:, 1] - kps[:, 0]).norm(dim=-1).median().item()
    noise = min(_noise_deviation(tracks), LARGEST_NOISE * eyes)

    smoothed = levels[-1]
    for fine, coarse, width, share in zip(levels, levels[1:], widths, shares):
        loss = fine - coarse
        power = _average(loss.square().mean(1, keepdim=True), SPREAD_FRAMES * strength * width / 2, is_even=True)
        kept = 1 - NOISE_MARGIN * noise**2 * share / power.clamp_min(1e-12)
        smoothed = smoothed + kept.clamp(0, 1) * loss
    return smoothed.unflatten(1, kps.shape[1:]).to(kps.dtype)


def _noise_deviation(tracks: Tensor) -> float:
    """The standard deviation of white noise in tracks (f d): from third differences, in which motion leaves little."""
    third = tracks.diff(n=3, dim=0) / math.sqrt(1 + 9 + 9 + 1)
    return third.abs().median().item() / 0.6745  # of normal noise, whatever moves at times


def _average(tracks: Tensor, deviation_frames: float, is_even: bool = False) -> Tensor:
    """Gaussian average of tracks (f d) over time.

    Beyond its ends, a clip goes on mirrored in time; unless `is_even`, also about the end of a fitted line, so that
    what rises goes on rising.
    """
    num_frames = len(tracks)
    radius = max(1, math.ceil(3.5 * deviation_frames))
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=tracks.dtype) / deviation_frames).square())
    fitted = 0 if is_even else min(num_frames, max(EDGE_FRAMES, math.ceil(EDGE_WIDTHS * deviation_frames)))
    before, after = _continued(tracks.flip(0), radius, fitted).flip(0), _continued(tracks, radius, fitted)
    padded = torch.cat([before, tracks, after])
    averaged = torch.nn.functional.conv1d(padded.T[:, None], (kernel / kernel.sum())[None, None])
    return averaged[:, 0].T


def _continued(tracks: Tensor, num_frames: int, fitted: int) -> Tensor:
    """The frames (num_frames d) after the end of tracks (f d), which a line through the last `fitted` ones decides."""
    steps = torch.arange(1, num_frames + 1).clamp_max(len(tracks) - 1)
    mirrored = tracks[len(tracks) - 1 - steps]
    if not fitted:
        return mirrored
    tail = tracks[-fitted:]
    time = torch.arange(fitted, dtype=tracks.dtype) - (fitted - 1) / 2
    slope = (time[:, None] * tail).sum(0) / time.square().sum().clamp_min(1)
    end = tail.mean(0) + slope * time[-1]  # of the line: one noisy frame must not decide
    return 2 * end - mirrored
