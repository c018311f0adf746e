"""Frames as a stream: their keypoints and audio tokens as they come, and the windows that they make."""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vexpress.audio_features import STEPS_PER_FRAME, AudioStream, FrameAudio
from vexpress.errors import InputError
from vexpress.models import Conditions
from vexpress.models.attributes import ATTRIBUTES
from vexpress.pipeline import inputs
from vexpress.pipeline.conditioning import WindowConditions

logger = logging.getLogger(__name__)

Source = Callable[[int], Tensor]
"""A frame's value by its number; asked for in order."""

FrameInputs = tuple[Tensor, Tensor]
"""Of one frame: keypoints (3 2) px and audio tokens (m d)."""


def waveform_chunks(audio: Any) -> Iterator[Tensor]:
    """Speech as chunks (n,): all that an iterable gives, empty ones left out, or one that is known in advance.

    Raises:
        InputError: at once, if it is neither; when asked for a chunk, if that is no speech.
    """
    if isinstance(audio, Tensor | np.ndarray):
        return iter([inputs.prepare_waveform(audio)])
    if isinstance(audio, str | bytes | dict) or not isinstance(audio, Iterable):
        raise InputError("must be speech, or an iterable of pieces of it", "audio_chunks", type(audio).__name__)
    pieces = (chunk for chunk in audio if not isinstance(chunk, Sized) or len(chunk))
    return (inputs.prepare_waveform(chunk, "audio_chunks") for chunk in pieces)


def kps_source(kps: Any) -> Source:
    """Keypoints (3 2) px by the number of a frame.

    Args:
        kps: (3 2) for a still head; (f 3 2); a callable that takes the frame's number; or an iterator. Where a sequence
            ends, the head stays as it is.

    Raises:
        InputError: at once, if it is none of these; when asked for a frame, if what comes are no keypoints.
    """
    return _frame_source(kps, "kps", "keypoints", (3, 2), inputs.prepare_kps)


def attribute_source(attributes: Any) -> Source:
    """Attributes (6,) by the number of a frame; as `kps_source`, in the order of `vexpress.models.attributes`.

    Raises:
        InputError: as `kps_source`.
    """
    return _frame_source(attributes, "attributes", "attributes", (len(ATTRIBUTES),), inputs.prepare_attributes)


def _frame_source(
    values: Any, field: str, what: str, shape: tuple[int, ...], prepare: Callable[[Any, str], Tensor]
) -> Source:
    """Values of one shape per frame from any of the forms of `kps_source`, checked by `prepare`, many at a time."""

    def check(value: Any) -> Tensor:
        if isinstance(value, list | tuple):
            return prepare([value], field)[0]
        if not isinstance(value, Tensor | np.ndarray):
            raise InputError(f"must give arrays of shape {shape}", field, type(value).__name__)
        return prepare(value[None], field)[0]

    if callable(values):
        return lambda number: check(values(number))
    if isinstance(values, Tensor | np.ndarray | list | tuple):
        values = inputs.as_tensor(values, field)
        sequence = prepare(values[None] if values.ndim == len(shape) else values, field)
        return lambda number: sequence[min(number, len(sequence) - 1)]
    if not isinstance(values, Iterator):
        raise InputError(f"must be {what}, a callable or an iterator", field, type(values).__name__)
    last: list[Tensor] = []

    def from_iterator(number: int) -> Tensor:
        for value in itertools.islice(values, 1):
            last[:] = [check(value)]
            return last[0]
        if not last:
            raise InputError(f"gives no {what}", field)
        return last[0]

    return from_iterator


def stream_frames(
    chunks: Iterable[Tensor],
    audio: AudioStream,
    frame_audio: FrameAudio,
    project: Callable[[Tensor], Tensor],
    kps: Callable[[int], Tensor],
    num_frames: Callable[[int], int],
) -> Iterator[FrameInputs]:
    """Gives frame after frame, as soon as its audio is there.

    Args:
        chunks: speech.
        audio: encodes it.
        frame_audio: cuts out what is around a frame.
        project: audio steps (f n d) -> audio tokens (1 f m d).
        kps: see `kps_source`.
        num_frames: samples of all the speech -> frames of the video.
    """
    numbers = itertools.count()

    def frames_of(windows: Tensor) -> Iterator[FrameInputs]:
        if len(windows):
            yield from ((kps(next(numbers)), tokens) for tokens in project(windows)[0])

    num_samples = 0
    for chunk in chunks:
        num_samples += len(chunk)
        for states in audio.push(chunk):
            yield from frames_of(frame_audio.push(states))
    if not num_samples:
        raise InputError("holds no speech", "audio_chunks")
    for states in audio.finish():
        yield from frames_of(frame_audio.push(states))
    yield from frames_of(frame_audio.finish(num_frames(num_samples)))


def states_per_step(samples_per_state: float, sampling_rate_hz: int, fps: float) -> float:
    """Hidden states per audio step of a video that plays at `fps`."""
    return sampling_rate_hz / samples_per_state / (STEPS_PER_FRAME * fps)


class RollingWindows:
    """Makes windows of frames as they come, and holds the last window's inputs alone.

    Args:
        frames: keypoints and audio tokens of each frame.
        conditions_of: keypoints (1 f 3 2) and audio tokens (1 f m d) -> conditions.
        context_frames: frames of a window.
        context_overlap: frames that neighbouring windows share.
    """

    def __init__(
        self,
        frames: Iterator[FrameInputs],
        conditions_of: WindowConditions,
        context_frames: int,
        context_overlap: int,
    ):
        self._frames, self._conditions_of = frames, conditions_of
        self._num_frames, self._num_new = context_frames, context_frames - context_overlap
        self._conditions = Conditions()

    def __iter__(self) -> Iterator[list[int]]:
        """The frames of each window: those of `context_windows`, without knowing how many there are."""
        held: list[FrameInputs] = []
        stop = 0
        while new := list(itertools.islice(self._frames, self._num_new if held else self._num_frames)):
            held = [*held, *new][-self._num_frames :]
            stop += len(new)
            kps, tokens = (torch.stack(parts)[None] for parts in zip(*held))
            self._conditions = self._conditions_of(kps, tokens)
            yield list(range(stop - len(held), stop))

    def conditions(self, windows: list[list[int]]) -> Conditions:
        """Conditions of the window that was last given."""
        return self._conditions
