"""Prepared clips as the head-motion network sees them: splines of the motion, and the speech around their points."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vexpress.audio_encoders import EncoderRecord
from vexpress.data.formats import ClipRecord, load_audio_states, load_face_info, load_metadata
from vexpress.errors import InputError, first_line
from vexpress.media.retargeting import measure_pose, relative_motion, rest_pose, smooth_kps
from vexpress.media.video import probe_video
from vexpress.models.head_motion import HeadMotion, fit_points

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MotionClip:
    """A clip as the network sees it.

    Attributes:
        motion: (f 6) float64, of each frame.
        points: (n 6) float32 of the splines.
        steps: (n + 2 context_points, s, d) float16, speech around each point.
        hidden_states: (m d) float16, all of it.
        audio_encoder: who made them.
        fps: frames per second.
    """

    motion: Tensor
    points: Tensor
    steps: Tensor
    hidden_states: Tensor
    audio_encoder: EncoderRecord
    fps: float

    @property
    def seconds(self) -> float:
        return len(self.motion) / self.fps


def load_clip(record: ClipRecord, network: HeadMotion) -> MotionClip:
    """Reads one clip.

    Raises:
        InputError: a file is missing or damaged.
    """
    kps = torch.from_numpy(load_face_info(record.face_info).kps[:, :3].copy())
    fps = record.fps or float(probe_video(record.video).fps)
    pose = measure_pose(smooth_kps(kps))
    motion = relative_motion(pose, rest_pose(pose))
    hidden_states, audio_encoder = load_audio_states(record.audio_embeds)
    hidden_states = hidden_states.half()
    config = network.config
    points = fit_points(motion, fps, config.points_per_second).float()
    steps = network.steps_around(
        hidden_states.float(), len(kps) / fps, -config.context_points, len(points) + 2 * config.context_points
    )
    return MotionClip(motion, points, steps.half(), hidden_states, audio_encoder, fps)


def load_clips(meta_paths: Sequence[str], network: HeadMotion) -> list[MotionClip]:
    """Reads all clips that are long enough for a piece; says how many are not, or cannot be read.

    Raises:
        InputError: a metadata file cannot be read, no clip is left, or their speech is of different encoders.
    """
    clips, problems = [], []
    for record in (record for path in meta_paths for record in load_metadata(path)):
        try:
            clip = load_clip(record, network)
        except InputError as error:
            problems.append(first_line(error))
            continue
        if len(clip.points) < network.config.piece_points or not clip.points.isfinite().all():
            problems.append(f"{record.video}: is too short, or its keypoints are not finite")
        else:
            clips.append(clip)
    if problems:
        logger.warning("%d clips are left out: %s", len(problems), "; ".join(problems[:3]))
    if not clips:
        raise InputError("holds no clip that is long enough; prepare data first", "meta_paths", list(meta_paths))
    encoders = {clip.audio_encoder for clip in clips}
    first = max(encoders, key=lambda encoder: encoder.digest)  # one of known weights, if there is any
    if others := [encoder for encoder in encoders if not encoder.fits(first)]:
        problem = f"holds hidden states by {first} and by {others[0]}; extract them with one audio encoder for all"
        raise InputError(problem, "meta_paths", list(meta_paths))
    return clips


def all_pieces(clips: Sequence[MotionClip], piece_points: int) -> Tensor:
    """Every piece of every clip, (n t 6)."""
    return torch.cat([clip.points.unfold(0, piece_points, 1).mT for clip in clips])


def random_batch(
    clips: Sequence[MotionClip], network: HeadMotion, batch_size: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Takes pieces (b t 6) anywhere in the clips, all moments alike, and the speech around them (b n s d)."""
    config = network.config
    num_starts = np.array([len(clip.points) - config.piece_points + 1 for clip in clips])
    chosen = rng.choice(len(clips), batch_size, p=num_starts / num_starts.sum())
    pieces, steps = [], []
    for clip, start in ((clips[i], rng.integers(num_starts[i])) for i in chosen):
        pieces.append(clip.points[start : start + config.piece_points])
        steps.append(clip.steps[start : start + config.piece_points + 2 * config.context_points])
    return torch.stack(pieces), torch.stack(steps).float()
