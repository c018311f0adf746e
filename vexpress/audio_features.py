"""Speech to what the networks read: wav2vec2 hidden states, and the steps of them around each video frame."""

import logging

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

logger = logging.getLogger(__name__)

WHOLE_CLIP_SECONDS = 120.0
"""Up to here wav2vec2 sees the clip at once, as released; its first layers need about 15 MB per second in fp32."""
CHUNK_SECONDS = 60.0
CONTEXT_SECONDS = 5.0  # seen on both sides of a chunk, and thrown away
STEPS_PER_FRAME = 2  # hidden states per video frame after resampling


def step_samples(config: Wav2Vec2Config) -> tuple[int, int]:
    """Samples that a step of the encoder's convolutions sees, and samples from one step to the next."""
    receptive_field, hop = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride):
        receptive_field, hop = receptive_field + (kernel - 1) * hop, hop * stride
    return receptive_field, hop


def encode_audio(
    encoder: Wav2Vec2Model,
    processor: Wav2Vec2FeatureExtractor,
    waveform: Tensor,
    device: torch.device | None = None,
) -> Tensor:
    """Encodes speech.

    A clip longer than `WHOLE_CLIP_SECONDS` is encoded in overlapping chunks. The group norm of the encoder's first
    layer and its attention span all they are given, so chunks are close to the whole clip's result and not equal to
    it; README, "Long audio", states the difference measured.

    Args:
        encoder: on any device, in any dtype.
        processor: normalises the whole clip to zero mean and unit variance.
        waveform: (n,) float at `processor.sampling_rate`; shorter than one hidden state is padded with silence.
        device: where the encoder works; None is where it is.

    Returns:
        (m d) on the encoder's device and in its dtype, about 50 steps per second.

    Source: paper section 3.2; `last_hidden_state`, as released.
    """
    receptive_field, hop = step_samples(encoder.config)
    values = processor(waveform.cpu().numpy(), sampling_rate=processor.sampling_rate, return_tensors="pt").input_values
    values = pad(values, (0, max(0, receptive_field - values.shape[1])))
    num_samples = values.shape[1]

    def encode(start: int, stop: int) -> Tensor:
        return encoder(values[:, start:stop].to(device or encoder.device, encoder.dtype)).last_hidden_state[0]

    if num_samples <= WHOLE_CLIP_SECONDS * processor.sampling_rate:
        return encode(0, num_samples)
    num_steps = (num_samples - receptive_field) // hop + 1
    chunk, context = (int(s * processor.sampling_rate) // hop for s in (CHUNK_SECONDS, CONTEXT_SECONDS))
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
