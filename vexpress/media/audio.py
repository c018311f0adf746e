"""Sound: read from any file that FFmpeg can decode, at its own rate and with its own channels."""

import dataclasses
import logging
import os

import av
import numpy as np
import torch

from vexpress.errors import InputError
from vexpress.media.container import decode_frames, file_start_seconds, open_stream

logger = logging.getLogger(__name__)

WAV2VEC2_RATE_HZ = 16000
# A first frame this late is real silence, not the rounding of a timestamp; later on, clocks of recorders jitter more.
MAX_START_ERROR_SECONDS = 0.01
MAX_DRIFT_SECONDS = 0.1
# A jump beyond this is a broken clock, not silence.
MAX_SILENCE_SECONDS = 600
# AAC in MP4 ends with up to two frames of padding, which the track's duration leaves out but FFmpeg decodes.
MAX_MP4_PADDING_SAMPLES = 4096


@dataclasses.dataclass(frozen=True)
class Audio:
    """Sound as it is in the file.

    Attributes:
        samples: (c n) float32, -1..1; lossy codecs overshoot a little.
        sampling_rate_hz: samples per second of each channel.
    """

    samples: np.ndarray
    sampling_rate_hz: int

    @property
    def duration_seconds(self) -> float:
        return self.samples.shape[1] / self.sampling_rate_hz

    def resampled(self, sampling_rate_hz: int) -> "Audio":
        """Converts the rate with soxr, since FFmpeg's own resampler lets -26 dB of aliases through at 16 kHz."""
        if sampling_rate_hz == self.sampling_rate_hz:
            return self
        import librosa  # costs seconds

        rates = {"orig_sr": self.sampling_rate_hz, "target_sr": sampling_rate_hz}
        return Audio(librosa.resample(self.samples, res_type="soxr_hq", **rates), sampling_rate_hz)

    def resampled_mono(self, sampling_rate_hz: int = WAV2VEC2_RATE_HZ) -> torch.Tensor:
        """Returns the mean of the channels at another rate: (n,) float32, -1..1."""
        mono = Audio(self.samples.mean(axis=0, keepdims=True), self.sampling_rate_hz)
        return torch.from_numpy(mono.resampled(sampling_rate_hz).samples[0])


def load_audio(path: str | os.PathLike, field: str = "audio_path") -> Audio:
    """Reads the sound of an audio or video file.

    Encoder delay is removed as FFmpeg does it. Sound that starts after the file does, or pauses, is padded with
    silence, so that sample n belongs to second n / rate of the file. Damaged parts are skipped with a warning.

    Args:
        path: any file with sound that FFmpeg reads.
        field: the option that gave the path, for the error.

    Raises:
        InputError: no such file, or nothing in it that can be decoded as sound.
    """
    with open_stream(path, "audio", field) as (container, stream):
        file_start = file_start_seconds(container)
        first = source = resampler = None
        blocks, num_samples, num_decoded = [], 0, 0
        for frame in decode_frames(container, stream, path):
            if first is None:
                first, rate, num_channels = frame, frame.sample_rate, frame.layout.nb_channels
            if source != (frame.format.name, frame.layout.name, frame.sample_rate):  # can change in mid-file
                source = (frame.format.name, frame.layout.name, frame.sample_rate)
                # Packed ("flt"), since PyAV 18 crashes on planar frames of more than 8 channels.
                resampler = av.AudioResampler(format="flt", layout=first.layout, rate=rate)
            late = 0 if frame.time is None else frame.time - file_start - num_samples / rate
            if (MAX_DRIFT_SECONDS if blocks else MAX_START_ERROR_SECONDS) < late <= MAX_SILENCE_SECONDS:
                blocks.append(np.zeros((round(late * rate), num_channels), np.float32))
                num_samples += len(blocks[-1])
            for converted in resampler.resample(frame):
                blocks.append(converted.to_ndarray().reshape(-1, num_channels))
                num_samples += len(blocks[-1])
                num_decoded += len(blocks[-1])
        if num_decoded == 0:
            raise InputError(f"no sound can be decoded from this file; give a sound file in `{field}`", field, path)
        if "mp4" in container.format.name and stream.duration:
            padding = num_decoded - round(stream.duration * stream.time_base * rate)
            num_samples -= padding if 0 < padding <= MAX_MP4_PADDING_SAMPLES else 0
    samples = np.concatenate(blocks)[:num_samples].T
    if not np.isfinite(samples).all():
        raise InputError(f"holds NaN or infinite samples; export the sound anew and give it in `{field}`", field, path)
    return Audio(samples, rate)
