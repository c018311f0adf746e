"""Files of a data set: metadata, face info and audio hidden states, in the released formats and in ours."""

import json
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vexpress.audio_encoders import STATES_HZ, EncoderRecord
from vexpress.data.arrays import (
    as_path,
    checked_path,
    float_array,
    float_item,
    most_bytes,
    read_file,
    readable_path,
    shape_of,
)
from vexpress.errors import InputError, first_line
from vexpress.files import read_json, replacing

VIDEO_SUFFIXES = (
    ".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".flv", ".wmv", ".mpg", ".mpeg", ".ts", ".mts", ".3gp",
)  # fmt: skip
FACE_INFO_SUFFIXES = (".npz", ".pt", ".pth")
AUDIO_EMBEDS_SUFFIXES = (".safetensors", ".npz", ".pt", ".pth")
FACE_SHAPES = {"bbox": (4,), "kps": (5, 2), "landmark_2d_106": (106, 2), "det_score": ()}
AUDIO_EMBEDS_KEY = "global_embeds"  # the released name
AUDIO_ENCODER_KEY = "audio_encoder"  # beside the states: who made them
MAX_AUDIO_ERROR_SECONDS = 0.2  # AAC pads by up to 0.13 s at 16 kHz
NUM_NAMED_FRAMES = 5  # in a message


# ---- face info -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FaceInfo:
    """The face in each frame of a clip; coordinates in px of the clip's frames.

    Attributes:
        bbox: (n 4) float32, x1 y1 x2 y2.
        kps: (n 5 2) float32: left eye, right eye, nose, left and right corner of the mouth, as seen by the viewer.
        landmark_2d_106: (n 106 2) float32.
        det_score: (n,) float32, 0..1.
        embedding: (n d) float32, d is 512 for insightface's recognition; None where it is not there.
    """

    bbox: np.ndarray
    kps: np.ndarray
    landmark_2d_106: np.ndarray
    det_score: np.ndarray
    embedding: np.ndarray | None = None

    @property
    def num_frames(self) -> int:
        return len(self.kps)


def load_face_info(path: str | os.PathLike) -> FaceInfo:
    """Reads face info: the released `.pt` (per frame a list of one dictionary) or our `.npz`.

    No code in the file is ever run. Values are not judged: a NaN stays one.

    Raises:
        InputError: missing, damaged, unsafe, of wrong shapes, without frames, or frames with no face or several.
    """
    path = readable_path(path, "face_info", FACE_INFO_SUFFIXES)
    content = read_file(path, "face_info")
    if path.suffix.lower() != ".npz":
        content = _columns(path, content)
    arrays = {}
    for name, shape in FACE_SHAPES.items():
        arrays[name] = float_array(content.get(name), most_bytes(path), shape)
        if arrays[name].shape[1:] != shape or arrays[name].ndim == 0:
            raise InputError(
                f"face_info {path}: {name} of a frame has shape {arrays[name].shape[1:]}, needed is {shape}; "
                "extract it again"
            )
    embedding = content.get("embedding")
    if embedding is not None:
        arrays["embedding"] = float_array(embedding, most_bytes(path))
        if arrays["embedding"].ndim != 2:
            raise InputError(f"face_info {path}: embedding is no vector per frame; extract it again")
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise InputError(f"face_info {path}: holds no frames, or not all of each: {lengths}; extract it again")
    return FaceInfo(**arrays)


def _columns(path: Path, frames: Any) -> dict[str, list]:
    """Per frame a list of one dictionary -> per name the values of all frames."""
    is_list = isinstance(frames, Sequence) and all(isinstance(faces, Sequence) for faces in frames)
    if not is_list or not all(isinstance(face, dict) for faces in frames for face in faces):
        raise InputError(f"face_info {path}: does not hold a list, per frame, of a list of one dictionary")
    bad = [index for index, faces in enumerate(frames) if len(faces) != 1]
    if bad:
        named = ", ".join(map(str, bad[:NUM_NAMED_FRAMES])) + ", ..." * (len(bad) > NUM_NAMED_FRAMES)
        raise InputError(
            f"face_info {path}: no face or several in {len(bad)} of {len(frames)} frames ({named}); "
            "exactly one is needed, leave the clip out"
        )
    faces = [face for [face] in frames]
    names = [name for name in (*FACE_SHAPES, "embedding") if all(face.get(name) is not None for face in faces)]
    return {name: [face[name] for face in faces] for name in names}


def save_face_info(path: str | os.PathLike, info: FaceInfo) -> None:
    """Writes face info by suffix: `.npz`, or `.pt` / `.pth` in the released structure.

    Differs from the release: a `.pt` holds tensors in the place of numpy arrays, so that `torch.load` reads it with
    `weights_only=True` and no list of exceptions, under any version of numpy.

    Raises:
        InputError: any other suffix.
    """
    path = checked_path(path, "face_info", FACE_INFO_SUFFIXES)
    arrays = {name: getattr(info, name) for name in (*FACE_SHAPES, "embedding")}
    arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items() if array is not None}
    with replacing(path) as temporary:
        if path.suffix.lower() == ".npz":
            np.savez(temporary, **arrays)
        else:
            columns = {name: torch.tensor(array) for name, array in arrays.items()}
            torch.save([[{name: c[i] for name, c in columns.items()}] for i in range(info.num_frames)], temporary)


# ---- audio hidden states -------------------------------------------------------------------------------------------


def load_audio_embeds(path: str | os.PathLike) -> Tensor:
    """Reads hidden states (m d) float32, and not who made them; raises as `load_audio_states`."""
    return _read_states(readable_path(path, "audio_embeds", AUDIO_EMBEDS_SUFFIXES))[0]


def load_audio_states(path: str | os.PathLike) -> tuple[Tensor, EncoderRecord]:
    """Reads the audio encoder's hidden states: the released `.pt` ({"global_embeds": (m 1 d)}) or ours.

    Returns:
        (m d) float32, and who made them; the released encoder of unknown weights, where that is not recorded.

    Raises:
        InputError: missing, damaged, unsafe, or without such states.
    """
    path = readable_path(path, "audio_embeds", AUDIO_EMBEDS_SUFFIXES)
    states, content = _read_states(path)
    return states, _encoder_record(path, content)


def _read_states(path: Path) -> tuple[Tensor, dict]:
    """The states, and all that the file holds."""
    content = read_file(path, "audio_embeds")
    value = content.get(AUDIO_EMBEDS_KEY) if isinstance(content, dict) else None
    shape = shape_of(value)
    if len(shape) == 3 and shape[1] == 1:
        value, shape = value[:, 0], (shape[0], shape[2])
    if len(shape) != 2 or 0 in shape:
        raise InputError(
            f"audio_embeds {path}: {AUDIO_EMBEDS_KEY} has shape {shape}, needed is (m d) or (m 1 d); extract it again"
        )
    try:
        return torch.from_numpy(float_item(value)), content
    except (TypeError, ValueError) as error:
        raise InputError(f"audio_embeds {path}: {AUDIO_EMBEDS_KEY} holds no numbers; extract it again") from error


def _encoder_record(path: Path, content: dict) -> EncoderRecord:
    text = content.get(AUDIO_ENCODER_KEY)
    try:
        if path.suffix.lower() == ".safetensors":
            with safe_open(path, framework="pt") as file:
                text = (file.metadata() or {}).get(AUDIO_ENCODER_KEY)
        elif isinstance(text, np.ndarray):
            text = text.item()
        return EncoderRecord() if text is None else EncoderRecord.from_text(text)
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"audio_embeds {path}: {AUDIO_ENCODER_KEY} {first_line(error)}; extract it again") from error


def audio_length_problem(num_states: int, seconds: float, states_hz: float = STATES_HZ) -> str | None:
    """Says in what hidden states differ from the frames' time, if they do; None if they fit.

    Args:
        num_states: steps of the audio encoder.
        seconds: that the clip's frames last.
        states_hz: steps per second.
    """
    audio_seconds = num_states / states_hz
    if abs(audio_seconds - seconds) <= MAX_AUDIO_ERROR_SECONDS:
        return None
    return f"audio_embeds: {num_states} states are {audio_seconds:.2f} s, the frames last {seconds:.2f} s"


def save_audio_embeds(path: str | os.PathLike, embeds: Tensor, encoder: EncoderRecord | None = None) -> None:
    """Writes hidden states (m d) by suffix: `.safetensors` or `.npz`, or `.pt` / `.pth` as released.

    Args:
        path: of the file.
        embeds: the states.
        encoder: who made them; None where that is not known.

    Raises:
        InputError: any other suffix.
    """
    path = checked_path(path, "audio_embeds", AUDIO_EMBEDS_SUFFIXES)
    embeds = embeds.detach().float().cpu().contiguous()
    record = {} if encoder is None else {AUDIO_ENCODER_KEY: encoder.to_text()}
    with replacing(path) as temporary:
        if path.suffix.lower() == ".safetensors":
            safetensors.torch.save_file({AUDIO_EMBEDS_KEY: embeds}, temporary, metadata=record or None)
        elif path.suffix.lower() == ".npz":
            np.savez(temporary, **{AUDIO_EMBEDS_KEY: embeds.numpy(), **record})
        else:
            torch.save({AUDIO_EMBEDS_KEY: embeds[:, None], **record}, temporary)


# ---- metadata ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClipRecord:
    """A row of a metadata file: where the parts of a clip are. Field names are the row's keys.

    The released rows know no more than the first three. `num_frames` counts frames of the video that can be decoded.
    """

    video: Path
    face_info: Path
    audio_embeds: Path
    duration: float | None = None
    """Seconds."""
    fps: float | None = None
    num_frames: int | None = None
    audio: Path | None = None
    attributes: Path | None = None
    """Exact ones; without, what landmarks say."""
    facts: dict[str, str | int | float] = field(default_factory=dict, hash=False)
    """Those of the row's other columns that were asked for."""


NEEDED_PATH_KEYS = ("video", "face_info", "audio_embeds")
PATH_KEYS = (*NEEDED_PATH_KEYS, "audio", "attributes")
NUMBER_KEYS = ("duration", "fps", "num_frames")
MAX_METADATA_BYTES = 2**31  # some millions of clips
MAX_NUMBER = 1e9  # of seconds or frames: 30 years, or one


def load_metadata(path: str | os.PathLike, columns: Sequence[str] = ()) -> list[ClipRecord]:
    """Reads a metadata file: a JSON list of objects with the fields of `ClipRecord`, of which three are needed.

    Paths are absolute or relative to the file's folder; other keys are ignored. Whether the parts exist is not looked
    at.

    Args:
        path: of the file.
        columns: other keys that each row must have, with a text or a number; they become `facts`.

    Raises:
        InputError: missing, not JSON, or not such a list; names the row, counted from 1.
    """
    path = as_path(path, "metadata")
    rows = load_rows(path)
    named = ((row, f"metadata {path} row {i} of {len(rows)}") for i, row in enumerate(rows, 1))
    return [parse_row(row, path.parent, where, columns) for row, where in named]


def load_rows(path: Path) -> list:
    """Reads the rows of a metadata file as they stand there.

    Raises:
        InputError: missing, not JSON, or no list.
    """
    try:
        rows = read_json(path, MAX_METADATA_BYTES)
    except OSError as error:
        raise InputError(f"metadata {path}: cannot be read ({error.strerror}); give a metadata file") from error
    except ValueError as error:
        raise InputError(f"metadata {path}: is not valid JSON ({error})") from error
    if not isinstance(rows, list):
        raise InputError(f"metadata {path}: holds a {type(rows).__name__}; needed is a list of rows")
    return rows


def parse_row(row: Any, folder: Path, where: str, columns: Sequence[str] = ()) -> ClipRecord:
    """Checks a row of a metadata file.

    Args:
        row: anything.
        folder: of the file; paths may be relative to it.
        where: names the row, for messages.
        columns: other keys that it must have, see `load_metadata`.

    Raises:
        InputError: it is no row.
    """
    if not isinstance(row, dict):
        raise InputError(f"{where}: is a {type(row).__name__}; needed is an object with {', '.join(NEEDED_PATH_KEYS)}")
    for key in NEEDED_PATH_KEYS:
        if row.get(key) is None:
            raise InputError(f'{where}: has no "{key}", the path of a file')
    values = {key: row[key] for key in (*PATH_KEYS, *NUMBER_KEYS) if row.get(key) is not None}
    for key, value in values.items():
        if key in PATH_KEYS:
            if not isinstance(value, str) or not _is_path(value):
                raise InputError(f'{where}: "{key}" is {_shown(value)}; needed is the path of a file')
            values[key] = folder / value
        else:
            kinds = int if key == "num_frames" else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < MAX_NUMBER:
                raise InputError(f'{where}: "{key}" is {_shown(value)}; needed is a positive number')
    for name in columns:
        if not isinstance(row.get(name), str | int | float):
            raise InputError(f'{where}: has no "{name}", a text or a number')
    return ClipRecord(**values, facts={name: row[name] for name in columns})


def _is_path(text: str) -> bool:
    """Whether the system could have a file of this name."""
    try:
        return b"\0" not in os.fsencode(text) and text != ""
    except UnicodeEncodeError:  # half a character
        return False


def _shown(value: Any) -> str:
    try:
        return textwrap.shorten(json.dumps(value), 80)
    except RecursionError:
        return f"a {type(value).__name__}"


def save_metadata(path: str | os.PathLike, records: Sequence[ClipRecord]) -> None:
    """Writes a metadata file; paths below its folder become relative to it, so that the folder can be moved."""
    path = Path(path)
    folder = path.parent.resolve()
    rows = [
        {
            key: _relative(value, folder) if key in PATH_KEYS else value
            for key, value in (record.facts | vars(record)).items()
            if value is not None and key != "facts"
        }
        for record in records
    ]
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _relative(path: Path, folder: Path) -> str:
    path = path.parent.resolve() / path.name  # a link stays one
    return os.fspath(path.relative_to(folder) if path.is_relative_to(folder) else path)
