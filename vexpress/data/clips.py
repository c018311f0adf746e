"""What training keeps in memory of each clip, and whether a clip can serve at all."""

from dataclasses import dataclass

import numpy as np

from vexpress.audio_encoders import EncoderRecord
from vexpress.data.attributes import clip_attributes
from vexpress.data.config import DataConfig
from vexpress.data.formats import ClipRecord, audio_length_problem, load_audio_states, load_face_info
from vexpress.data.latent_cache import CachedLatents, latent_cache_path, read_cached
from vexpress.data.order import num_frames_spanned
from vexpress.data.transforms import eye_corners, lip_corners
from vexpress.errors import InputError
from vexpress.media.random_access import count_frames
from vexpress.media.video import probe_video

MAX_COUNT_DIFFERENCE = 2
"""Decoders disagree about the last frames of some files; more frames without face info are another clip's."""


@dataclass(frozen=True)
class Clip:
    """What stays in memory of a clip: some 100 bytes per frame.

    Attributes:
        record: the clip's row of the metadata.
        frame_size: width and height in px.
        fps: frames per second.
        num_video_frames: as many as the audio spans.
        num_frames: as many as have face info, too; samples are taken from these.
        audio_dim: width of a hidden state.
        audio_encoder: who made them.
        kps: (num_frames 3 2) float32 px.
        lip_corners: (num_frames 2 2) float32 px.
        eye_corners: (num_frames 2 2 2) float32 px.
        boxes: (num_frames 4) float32 px, the face's.
        attributes: (num_frames 6) float32, NaN where not known.
        latents: the file of cached latents, or None.
    """

    record: ClipRecord
    frame_size: tuple[int, int]
    fps: float
    num_video_frames: int
    num_frames: int
    audio_dim: int
    audio_encoder: EncoderRecord
    kps: np.ndarray
    lip_corners: np.ndarray
    eye_corners: np.ndarray
    boxes: np.ndarray
    attributes: np.ndarray
    latents: CachedLatents | None


def num_frames_needed(config: DataConfig) -> int:
    """Frames that a clip must have to give a sample and a reference frame away from it."""
    return num_frames_spanned(config.num_frames, config.sample_rate) + config.reference_margin


def read_clip(record: ClipRecord, config: DataConfig, latent_downsampling: int) -> Clip:
    """Checks that a clip is usable, and reads what stays in memory.

    Only the first frame of its video is decoded for this; a row's `num_frames` is trusted, and without it packets are
    counted.

    Raises:
        InputError: its files cannot be read, face info and video differ by more than `MAX_COUNT_DIFFERENCE` frames
            (else the smaller number is used), hidden states and video differ in length, keypoints, landmarks or hidden
            states are not finite, its cached latents are not as needed, or it is too short; says why.
    """
    info = probe_video(record.video, "video")
    num_video_frames = record.num_frames or count_frames(record.video)
    face_info = load_face_info(record.face_info)
    if abs(face_info.num_frames - num_video_frames) > MAX_COUNT_DIFFERENCE:
        raise InputError(
            f"face_info {record.face_info} has {face_info.num_frames} frames, the video {num_video_frames}; extract it "
            "again"
        )
    num_frames = min(face_info.num_frames, num_video_frames)
    for name in ("kps", "landmark_2d_106"):
        is_bad = ~np.isfinite(getattr(face_info, name)[:num_frames]).all(axis=(1, 2))
        if is_bad.any():
            raise InputError(
                f"face_info {record.face_info}: {name} of {is_bad.sum()} frames is not finite, the first is frame "
                f"{is_bad.argmax()}; extract it again"
            )
    hidden_states, audio_encoder = load_audio_states(record.audio_embeds)
    if not hidden_states.isfinite().all():
        raise InputError(f"audio_embeds {record.audio_embeds}: not all values are finite; extract them again")
    num_needed = num_frames_needed(config)
    if num_frames < num_needed:
        raise InputError(
            f"has {num_frames} frames, needed are {num_needed} for data.num_frames={config.num_frames}, "
            f"data.sample_rate={config.sample_rate} and data.reference_margin={config.reference_margin}"
        )
    seconds = record.duration or float(num_video_frames / info.fps)
    if problem := audio_length_problem(len(hidden_states), seconds, audio_encoder.states_hz):
        raise InputError(f"audio_embeds {record.audio_embeds}: {problem}; extract them again")
    latents = None
    if config.latent_cache_dir is not None:
        latents = read_cached(latent_cache_path(config.latent_cache_dir, record.video))
        found, _, *size = latents.shape
        needed_size = [config.train_height // latent_downsampling, config.train_width // latent_downsampling]
        if size != needed_size or found < num_frames:
            raise InputError(
                f"cached latents {latents.path}: {found} frames of {size}, needed are {num_frames} of {needed_size}; "
                "make them again with `vexpress cache-latents`"
            )
        if not latents.are_of(record.video):
            raise InputError(
                f"cached latents {latents.path} are of another video than {record.video} is now; make them again with "
                "`vexpress cache-latents`"
            )
    return Clip(
        record=record,
        frame_size=(info.width, info.height),
        fps=record.fps or float(info.fps),
        num_video_frames=num_video_frames,
        num_frames=num_frames,
        audio_dim=hidden_states.shape[1],
        audio_encoder=audio_encoder,
        kps=face_info.kps[:num_frames, :3].copy(),
        lip_corners=lip_corners(face_info.landmark_2d_106[:num_frames]),
        eye_corners=eye_corners(face_info.landmark_2d_106[:num_frames]),
        boxes=face_info.bbox[:num_frames].copy(),
        attributes=clip_attributes(record.attributes, face_info.landmark_2d_106[:num_frames]),
        latents=latents,
    )
