"""What the networks are trained on besides the frames: the face in each of them, and the audio's hidden states."""

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model

from vexpress.audio_features import encode_audio
from vexpress.data.formats import FaceInfo
from vexpress.errors import InputError
from vexpress.media.audio import load_audio
from vexpress.media.faces import Face, FaceAnalyzer, track_face
from vexpress.media.video import read_frames

FLAG = "input_dir"
VIDEO_SUFFIXES = (
    ".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".flv", ".wmv", ".mpg", ".mpeg", ".ts", ".mts", ".3gp",
)  # fmt: skip
FORMATS = {"npz": (".face_info.npz", ".audio_embeds.safetensors"), "pt": (".face_info.pt", ".aud_embeds.pt")}
"""Name of a format -> endings of the files of face info and audio hidden states; "pt" is the released one."""


def find_videos(input_dir: Path, leave_out: Path | None = None) -> list[Path]:
    """Lists the videos in a folder and those below it, sorted; hidden ones and those below `leave_out` do not count.

    Raises:
        InputError: no such folder, or no video in it.
    """
    if not input_dir.is_dir():
        raise InputError(f"{FLAG} {input_dir}: no such folder")
    found = []
    for folder, folder_names, file_names in os.walk(input_dir):
        folder_names[:] = [
            name
            for name in folder_names
            if not (name.startswith(".") or leave_out and Path(folder, name).resolve() == leave_out.resolve())
        ]
        visible = [name for name in file_names if not name.startswith(".")]
        found += [Path(folder, name) for name in visible if name.lower().endswith(VIDEO_SUFFIXES)]
    if not found:
        raise InputError(f"{FLAG} {input_dir}: holds no video ({', '.join(VIDEO_SUFFIXES)})")
    return sorted(found, key=os.fsencode)


def build_face_info(
    frames: Iterable[list[Face]], max_gap: int, field: str, value: object = None
) -> tuple[FaceInfo, list[int]]:
    """Follows one face through a clip and gathers all that is known of it.

    Args:
        frames: the faces of each frame with all MODULES, the largest first.
        max_gap: so many frames in a row may lack the face; all its values are interpolated there.
        field: the option that gave the video, for errors; likewise `value`, what it was given.

    Returns:
        The face in each frame, and the indices of the frames that were filled.

    Raises:
        InputError: the face is missing for longer; names the frames.
    """
    detections = list(frames)
    kps, filled = track_face(detections, max_gap, field, value)
    seen = np.setdiff1d(np.arange(len(kps)), filled)
    faces = [min(detections[i], key=lambda face, i=i: np.abs(face.kps - kps[i]).sum()) for i in seen]

    def fill(values: list) -> np.ndarray:
        tracks = np.stack(values).reshape(len(seen), -1).T
        filled_tracks = [np.interp(range(len(kps)), seen, track) for track in tracks]
        return np.stack(filled_tracks, axis=1).reshape(len(kps), *np.shape(values[0])).astype(np.float32)

    names = [field.name for field in dataclasses.fields(FaceInfo)]
    return FaceInfo(**{name: fill([getattr(face, name) for face in faces]) for name in names}), filled


def extract_face_info(
    video_path: Path, analyzer: FaceAnalyzer, max_gap: int, field: str = "video_path"
) -> tuple[FaceInfo, list[int]]:
    """Finds the face in each frame that a clip decodes to; see `build_face_info`.

    Raises:
        InputError: the video cannot be read, or the face is missing for longer than `max_gap`.
    """
    frames = (analyzer.detect(frame) for _, frame in read_frames(video_path, field))
    return build_face_info(frames, max_gap, field, video_path)


def extract_audio_embeds(
    path: Path, encoder: Wav2Vec2Model, processor: Wav2Vec2FeatureExtractor, field: str = "video_path"
) -> Tensor:
    """Encodes the sound of a video or audio file: (m d) float32.

    Raises:
        InputError: there is no sound that can be decoded.
    """
    waveform = load_audio(path, field).resampled_mono(processor.sampling_rate)
    with torch.inference_mode():
        return encode_audio(encoder, processor, waveform).float().cpu()
