"""ComfyUI's values and ours: pictures, sound, options, and the words of errors.

An IMAGE is a tensor (b H W c) in 0..1, an AUDIO a dictionary with `waveform` (b c n) in -1..1 and `sample_rate`.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vexpress.data.attribute_curves import read_curves
from vexpress.errors import InputError
from vexpress.media.audio import Audio
from vexpress.options import MotionOptions, SamplingOptions

logger = logging.getLogger(__name__)

UNSET = "unset"
"""What a node shows for an option that is not set, which is None in the table."""

INPUT_NAMES = {
    "reference_image_path": "portrait",
    "audio_path": "audio",
    "video_path": "video",
    "kps_path": "kps",
    "insightface_model_path": "model_folder",
    "model_dir": "model_folder",
}
"""Field of the package -> input of the nodes, where their names differ."""

Options = TypeVar("Options", SamplingOptions, MotionOptions)


@contextlib.contextmanager
def node_words() -> Iterator[None]:
    """Gives fields in the errors of what runs inside the names of the nodes' inputs."""
    try:
        yield
    except InputError as error:
        raise InputError(error.worded(lambda field: INPUT_NAMES.get(field, field))) from error


def to_picture(image: Tensor, field: str) -> Image.Image:
    """The first picture of an IMAGE.

    Raises:
        InputError: the batch is empty.
    """
    if not len(image):
        raise InputError("holds no picture", field)
    if len(image) > 1:
        logger.warning("`%s`: the first of %d pictures is used", field, len(image))
    return Image.fromarray(to_pixels(image[0]))


def to_pixels(image: Tensor) -> np.ndarray:
    """One picture (H W c) in 0..1 -> (H W 3) uint8; transparency is left out."""
    return image[..., :3].mul(255).round().clamp(0, 255).byte().cpu().numpy()


def to_batch(frames: Iterable[np.ndarray]) -> Tensor:
    """Pictures (H W 3) uint8 -> IMAGE."""
    return torch.stack([torch.from_numpy(np.array(frame)) for frame in frames]).float().div_(255)


def to_audio(sound: Mapping[str, Any], field: str = "audio") -> Audio:
    """An AUDIO as ours.

    Raises:
        InputError: no sound, several, or samples that are not finite.
    """
    waveform = sound["waveform"]
    if waveform.ndim != 3 or len(waveform) != 1 or not waveform.shape[-1]:
        raise InputError(f"must be one sound, not of shape {tuple(waveform.shape)}", field)
    if not waveform.isfinite().all():
        raise InputError("holds NaN or infinite samples", field)
    return Audio(waveform[0].float().cpu().numpy(), int(sound["sample_rate"]))


def from_audio(audio: Audio) -> dict[str, Any]:
    """Our sound as an AUDIO."""
    return {"waveform": torch.from_numpy(audio.samples)[None], "sample_rate": audio.sampling_rate_hz}


def options_of(table: type[Options], values: Mapping[str, Any]) -> Options:
    """The options that a node's inputs say; those that it does not have keep their defaults.

    Raises:
        InputError: a value is out of bounds.
    """
    names = {field.name for field in fields(table)}
    return table(**{name: None if value in (UNSET, "") else value for name, value in values.items() if name in names})


def check_options(values: Mapping[str, Any]) -> bool | str:
    """Checks widgets before anything runs, as `validate_inputs` of a node does.

    Args:
        values: those that are known; None for one that another node gives.

    Returns:
        True, or what is wrong.
    """
    known = {name: value for name, value in values.items() if value is not None}
    if "context_frames" not in known:  # the overlap is checked against it
        known.pop("context_overlap", None)
    try:
        options_of(SamplingOptions, known)
        read_curves(options_of(MotionOptions, known), reads_files=False)
    except InputError as error:
        return str(error)
    return True
