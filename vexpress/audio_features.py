"""Speech to what the networks read: an encoder's hidden states, and the steps of them around each video frame."""

import logging
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad
from transformers import PretrainedConfig, PreTrainedModel
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor

from vexpress.audio_encoders import count_steps, hidden_states, most_steps, normalises, step_samples

logger = logging.getLogger(__name__)

WHOLE_CLIP_SECONDS = 120.0
"""Up to here wav2vec2 and its kin see the clip at once, as released; the first layers need 15 MB per second in fp32."""
CHUNK_SECONDS = 60.0
CONTEXT_SECONDS = 5.0  # seen on both sides of a chunk, and thrown away
STEPS_PER_FRAME = 2  # hidden states per video frame after resampling


def _chunk_steps(config: PretrainedConfig, sampling_rate_hz: int) -> tuple[int, int, int]:
    """Steps up to which a clip is encoded at once, else steps of a chunk, and of context on each side of it."""
    hop = step_samples(config)[1]
    whole, chunk, context = (
        int(s * sampling_rate_hz) // hop for s in (WHOLE_CLIP_SECONDS, CHUNK_SECONDS, CONTEXT_SECONDS)
    )
    if (most := most_steps(config)) is None:
        return whole, chunk, context
    context = min(context, most // 6)
    return most, min(chunk, most - 2 * context), context


def encode_audio(
    encoder: PreTrainedModel,
    processor: SequenceFeatureExtractor,
    waveform: Tensor,
    device: torch.device | None = None,
    check: Callable[[], None] = lambda: None,
) -> Tensor:
    """Encodes speech.

    A clip longer than `WHOLE_CLIP_SECONDS`, or than what the encoder takes at once, is encoded in overlapping chunks.
    The group norm of wav2vec2's first layer and all attention span what they are given, so chunks are close to the
    whole clip's result and not equal to it; docs/inference.md, "Long audio", states the difference measured.

    Args:
        encoder: any of `vexpress.audio_encoders`, on any device, in any dtype.
        processor: normalises the whole clip to zero mean and unit variance, or makes its spectrum.
        waveform: (n,) float at `processor.sampling_rate`; shorter than one hidden state is padded with silence.
        device: where the encoder works; None is where it is.
        check: called before each chunk; may raise what ends the work.

    Returns:
        (m d) on the encoder's device and in its dtype; wav2vec2 makes about 50 steps per second.

    Source: paper section 3.2; `last_hidden_state`, as released.
    """
    receptive_field, hop = step_samples(encoder.config)
    values = waveform.float().cpu()
    if normalises(processor):
        samples = waveform.cpu().numpy()
        values = processor(samples, sampling_rate=processor.sampling_rate, return_tensors="pt").input_values[0]
    values = pad(values, (0, max(0, receptive_field - len(values))))
    num_samples, num_steps = len(values), count_steps(encoder.config, len(values))
    most, chunk, context = _chunk_steps(encoder.config, processor.sampling_rate)

    def encode(start: int, stop: int) -> Tensor:
        check()
        return hidden_states(encoder, processor, values[start:stop], device)

    if num_samples <= most * hop:
        return encode(0, num_samples)
    logger.info("audio of %.0f s: encoded in chunks", num_samples / processor.sampling_rate)
    parts = []
    for start in range(0, num_steps, chunk):
        stop = min(start + chunk, num_steps)
        left = max(0, start - context)
        right = min(stop + context, num_steps)
        states = encode(left * hop, (right - 1) * hop + receptive_field)
        parts.append(states[start - left : stop - left])
    return torch.cat(parts)


def num_audio_steps(num_pad_audio_frames: int) -> int:
    """Audio steps around each frame, with frames of context on both sides."""
    return STEPS_PER_FRAME * (2 * num_pad_audio_frames + 1)


def audio_windows(hidden_states: Tensor, num_frames: int, num_pad_audio_frames: int = 2) -> Tensor:
    """Cuts out the audio steps around each frame of a video as long as the audio.

    Args:
        hidden_states: (m d), all of the clip's.
        num_frames: frames of the whole video.
        num_pad_audio_frames: frames of audio context on each side of a frame; zeros beyond the ends.

    Returns:
        (num_frames n d), n = 2 * (2 * num_pad_audio_frames + 1).
    """
    steps = interpolate(hidden_states.mT[None], size=STEPS_PER_FRAME * num_frames, mode="linear")[0].mT
    margin = STEPS_PER_FRAME * num_pad_audio_frames
    length = num_audio_steps(num_pad_audio_frames)
    return pad(steps, (0, 0, margin, margin)).unfold(0, length, STEPS_PER_FRAME).mT


class AudioStream:
    """Encodes speech as it comes.

    Each piece is encoded with some seconds before and after it, which are thrown away, and normalised, if the encoder's
    speech is, by the mean and variance of all that was heard up to then. Results depend on `piece_seconds`, not on how
    many samples come at once. Pieces and their surroundings are shortened to what the encoder takes at once.

    Args:
        encoder: any of `vexpress.audio_encoders`, on any device, in any dtype.
        processor: of the encoder.
        piece_seconds: speech encoded at once.
        context_seconds: speech before a piece that the encoder hears with it.
        look_ahead_seconds: speech after a piece, likewise; so long is a piece waited with.
        statistics: mean and variance of speech known in advance, in place of those of what was heard.
        device: where the encoder works; None is where it is.
    """

    def __init__(
        self,
        encoder: PreTrainedModel,
        processor: SequenceFeatureExtractor,
        *,
        piece_seconds: float,
        context_seconds: float,
        look_ahead_seconds: float,
        statistics: tuple[float, float] | None = None,
        device: torch.device | None = None,
    ):
        self._encoder, self._processor = encoder, processor
        self._device, self._statistics = device or encoder.device, statistics
        self._receptive_field, self._hop = step_samples(encoder.config)
        seconds = (piece_seconds, context_seconds, look_ahead_seconds)
        steps = (round(s * processor.sampling_rate / self._hop) for s in seconds)
        self._piece, self._context, self._look_ahead = (max(least, s) for least, s in zip((1, 0, 0), steps))
        if (most := most_steps(encoder.config)) and self._piece + self._context + self._look_ahead > most:
            self._context, self._look_ahead = (min(s, most // 6) for s in (self._context, self._look_ahead))
            self._piece = min(self._piece, most - self._context - self._look_ahead)
        self._samples = torch.zeros(0)  # those that may be heard again
        self._first = 0  # number of the first of them
        self._num_steps = 0  # given so far
        self._heard = torch.zeros(3, dtype=torch.float64)  # number, sum and sum of squares of samples

    def push(self, samples: Tensor) -> Iterator[Tensor]:
        """Takes more speech (n,) float, and gives hidden states (k d), piece by piece, as far as they can be known."""
        self._samples = torch.cat([self._samples, samples.float().cpu()])
        while self._end(self._num_steps + self._piece + self._look_ahead) <= self._first + len(self._samples):
            yield self._encode(self._num_steps + self._piece, self._num_steps + self._piece + self._look_ahead)

    def finish(self) -> Iterator[Tensor]:
        """Gives the rest at the end of the speech; speech shorter than one hidden state is padded with silence."""
        self._samples = pad(self._samples, (0, max(0, self._receptive_field - self._first - len(self._samples))))
        num_steps = count_steps(self._encoder.config, self._first + len(self._samples))
        while self._num_steps < num_steps:
            stop = min(self._num_steps + self._piece, num_steps)
            right = min(stop + self._look_ahead, num_steps)
            # The last samples make no step, but the encoder's norms see them.
            yield self._encode(stop, right, self._first + len(self._samples) if right == num_steps else None)

    def _end(self, num_steps: int) -> int:
        """Samples that so many steps see."""
        return (num_steps - 1) * self._hop + self._receptive_field

    def _encode(self, stop: int, right: int, end: int | None = None) -> Tensor:
        """Hidden states up to step `stop`; the encoder hears those up to `right`, or samples up to `end`."""
        left, end = max(0, self._num_steps - self._context), end or self._end(right)
        heard = self._samples[max(0, int(self._heard[0]) - self._first) : end - self._first].double()
        self._heard += torch.stack([torch.tensor(float(len(heard))), heard.sum(), heard.square().sum()])
        mean = float(self._heard[1] / self._heard[0])
        statistics = self._statistics or (mean, max(0.0, float(self._heard[2] / self._heard[0]) - mean**2))
        values = self._samples[left * self._hop - self._first : end - self._first]
        if normalises(self._processor):
            values = normalise(values, *statistics)
        states = hidden_states(self._encoder, self._processor, values, self._device)
        states = states[self._num_steps - left : stop - left]
        self._num_steps = stop
        num_done = max(0, stop - self._context) * self._hop - self._first
        self._samples, self._first = self._samples[num_done:], self._first + num_done
        return states


def normalise(waveform: Tensor, mean: float, variance: float) -> Tensor:
    """Zero mean and unit variance.

    Source: `Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm`, its epsilon included.
    """
    return (waveform - mean) / (variance + 1e-7) ** 0.5


class FrameAudio:
    """Cuts the audio steps around frames out of hidden states that come piece by piece, as `audio_windows` does.

    Args:
        states_per_step: hidden states per audio step; there are `STEPS_PER_FRAME` steps to a frame.
        num_pad_audio_frames: frames of audio context on each side of a frame; zeros beyond the ends.
    """

    def __init__(self, states_per_step: float, num_pad_audio_frames: int):
        self._ratio, self._margin = states_per_step, STEPS_PER_FRAME * num_pad_audio_frames
        self._states: Tensor | None = None
        self._first = 0  # number of the first hidden state held
        self.num_frames = 0  # given so far

    def push(self, states: Tensor) -> Tensor:
        """Takes hidden states (k d); gives steps (f n d) around the next f frames, all of whose steps are known."""
        self._states = states if self._states is None else torch.cat([self._states, states])
        if not len(self._states):
            return states.new_zeros(0, num_audio_steps(self._margin // STEPS_PER_FRAME), states.shape[1])
        # Step j lies between hidden states floor(x) and floor(x) + 1, x = (j + 0.5) * ratio - 0.5.
        num_states = self._first + len(self._states)
        num_steps = math.floor((num_states - 1 + 0.5) / self._ratio - 0.5)
        return self._take(max(self.num_frames, (num_steps - self._margin) // STEPS_PER_FRAME), math.inf)

    def finish(self, num_frames: int) -> Tensor:
        """Gives the steps around the rest of `num_frames` frames."""
        return self._take(num_frames, STEPS_PER_FRAME * num_frames)

    def _take(self, stop: int, num_steps: float) -> Tensor:
        frames = torch.arange(self.num_frames, max(stop, self.num_frames))[:, None]
        steps = STEPS_PER_FRAME * frames - self._margin + torch.arange(STEPS_PER_FRAME + 2 * self._margin)
        place = ((steps + 0.5).double() * self._ratio - 0.5).clamp(min=0)
        last = self._first + len(self._states) - 1
        low = place.floor().long().clamp(max=last)
        share = (place - low).clamp(max=1).to(self._states)[..., None]
        near, far = (self._states[(i - self._first).clamp(min=0)] for i in (low, (low + 1).clamp(max=last)))
        values = near + share * (far - near)
        is_inside = ((steps >= 0) & (steps < num_steps)).to(values)
        self.num_frames = max(stop, self.num_frames)
        first = STEPS_PER_FRAME * self.num_frames - self._margin  # the first step that is needed yet
        first = min(max(0, math.floor((first + 0.5) * self._ratio - 0.5)), last)
        self._states, self._first = self._states[first - self._first :], first
        return values * is_inside[..., None]
