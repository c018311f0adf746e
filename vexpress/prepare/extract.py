"""What the networks are trained on besides the frames: the face in each of them, and the audio's hidden states."""

import dataclasses
import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor

from vexpress.audio_features import encode_audio
from vexpress.data.formats import VIDEO_SUFFIXES, FaceInfo
from vexpress.errors import InputError
from vexpress.media.audio import load_audio
from vexpress.media.faces import Face, FaceAnalyzer, track_face
from vexpress.media.video import read_frames
from vexpress.storage import AnyPath, find_files, is_remote


def find_videos(input_dir: AnyPath, leave_out: AnyPath | None = None) -> list[AnyPath]:
    """Lists the videos in a folder at any depth, sorted; hidden ones and those in `leave_out` are left out.

    Raises:
        InputError: no such folder, or no video in it.
    """
    if not input_dir.is_dir():
        raise InputError("no such folder", "input_dir", input_dir)
    if is_remote(input_dir):
        found = [path for path in find_files(input_dir) if path.name.lower().endswith(VIDEO_SUFFIXES)]
        found = [path for path in found if not re.search(r"(^|/)\.", str(path.relative_to(input_dir)))]
        if leave_out is not None:
            found = [path for path in found if not str(path).startswith(f"{leave_out}/")]
    else:
        found = _find_here(input_dir, leave_out)
    if not found:
        raise InputError(f"holds no video ({', '.join(VIDEO_SUFFIXES)})", "input_dir", input_dir)
    return sorted(found, key=os.fsencode if not is_remote(input_dir) else str)


def _find_here(input_dir: Path, leave_out: AnyPath | None) -> list[Path]:
    leave_out = leave_out.resolve() if leave_out is not None and not is_remote(leave_out) else None
    found = []
    for folder, folder_names, file_names in os.walk(input_dir):
        folder_names[:] = [
            name
            for name in folder_names
            if not (name.startswith(".") or leave_out and Path(folder, name).resolve() == leave_out)
        ]
        visible = [name for name in file_names if not name.startswith(".")]
        found += [Path(folder, name) for name in visible if name.lower().endswith(VIDEO_SUFFIXES)]
    return found


def build_face_info(
    frames: Iterable[list[Face]], max_gap: int, field: str, value: object = None
) -> tuple[FaceInfo, list[int]]:
    """Follows one face through a clip and collects its values in each frame.

    Args:
        frames: the faces of each frame, found with all MODULES, the largest first.
        max_gap: longest gap, in frames, that is interpolated.
        field: the option that gave the video, for errors.
        value: what it was given.

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
    frames = analyzer.detect_each(frame for _, frame in read_frames(video_path, field))
    return build_face_info(frames, max_gap, field, video_path)


def extract_audio_embeds(
    path: Path, encoder: PreTrainedModel, processor: SequenceFeatureExtractor, field: str = "video_path"
) -> Tensor:
    """Encodes the sound of a video or audio file: (m d) float32.

    Raises:
        InputError: there is no sound that can be decoded.
    """
    waveform = load_audio(path, field).resampled_mono(processor.sampling_rate)
    with torch.inference_mode():
        return encode_audio(encoder, processor, waveform).float().cpu()
