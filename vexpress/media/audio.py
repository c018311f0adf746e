"""Sound: read from any file that FFmpeg can decode, at its own rate and with its own channels; written to files."""

import dataclasses
import logging
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from vexpress.errors import InputError
from vexpress.files import replacing
from vexpress.media.container import decode_frames, file_start_seconds, open_stream

logger = logging.getLogger(__name__)

WAV2VEC2_RATE_HZ = 16000
# A first frame this late is real silence, not the rounding of a timestamp; later on, clocks of recorders jitter more.
MAX_START_ERROR_SECONDS = 0.01
MAX_DRIFT_SECONDS = 0.1
# AAC in MP4 ends with up to two frames of padding, which the track's duration leaves out but FFmpeg decodes.
MAX_MP4_PADDING_SAMPLES = 4096
# Lossy codecs overshoot 1 a little, and some float files are loud; what is beyond this is not sound.
MAX_SAMPLE = 100.0

MIN_RATE_HZ, MAX_RATE_HZ = 1000, 1_000_000
MAX_CHANNELS = 64  # of what FFmpeg resamples
MAX_VALUES = 2**31  # of all channels: 12 hours of one at 48 kHz, 8 GiB

LEVEL_WINDOW_SECONDS = 0.1
# -70 dB of full scale: the audio encoder's input is scaled to variance 1, but hardly so below a variance of 1e-7.
SILENCE_LEVEL = 3e-4
QUIET_SHARE = 0.05  # of the loudest window's level: below, a window does not say whether channels cancel
CANCELLED_SHARE = 0.25  # a mix 12 dB below a channel of it; channels that only differ lose 3 or 6 dB
MAX_CANCELLED_WINDOWS = 0.1  # of those that say something

AUDIO_CODECS = {".wav": "pcm_s16le", ".flac": "flac", ".mp3": "libmp3lame", ".m4a": "aac"}
LOSSY_CODECS = ("libmp3lame", "aac")
LOSSY_BITS_PER_SECOND = 192_000
WRITE_BLOCK_SAMPLES = 4096
LAYOUTS = {1: "mono", 2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
"""Number of channels -> what FFmpeg takes them for where a file does not say."""


@dataclasses.dataclass(frozen=True)
class Audio:
    """Sound as it is in the file.

    Attributes:
        samples: (c n) float32, -1..1; lossy codecs overshoot a little.
        sampling_rate_hz: samples per second of each channel.
        layout: FFmpeg's name of what the channels are, such as "5.1"; None where nobody said.
    """

    samples: np.ndarray
    sampling_rate_hz: int
    layout: str | None = None

    @property
    def duration_seconds(self) -> float:
        return self.samples.shape[1] / self.sampling_rate_hz

    def resampled(self, sampling_rate_hz: int) -> "Audio":
        """Converts the rate with soxr, since FFmpeg's own resampler lets -26 dB of aliases through at 16 kHz."""
        if sampling_rate_hz == self.sampling_rate_hz:
            return self
        import librosa  # costs seconds

        rates = {"orig_sr": self.sampling_rate_hz, "target_sr": sampling_rate_hz}
        samples = librosa.resample(self.samples, res_type="soxr_hq", **rates)
        return dataclasses.replace(self, samples=samples, sampling_rate_hz=sampling_rate_hz)

    def mono(self) -> "Audio":
        """Mixes the channels to one, (1 n): two by their mean, more by FFmpeg's downmix, which favours the centre.

        Where they cancel, as in a stereo file with one channel inverted, it is the loudest of them.
        """
        return Audio(self._heard()[0], self.sampling_rate_hz, "mono")

    def resampled_mono(self, sampling_rate_hz: int = WAV2VEC2_RATE_HZ) -> torch.Tensor:
        """Returns `mono` at another rate: (n,) float32, -1..1."""
        return torch.from_numpy(self.mono().resampled(sampling_rate_hz).samples[0])

    def warn_of_what_is_heard(self, what: str) -> None:
        """Warns if channels cancel in the mix, or if the audio encoder would hear silence.

        Args:
            what: where the sound is from, for the messages.
        """
        samples, channel = self._heard()
        if channel is not None:
            logger.warning(
                "%s: its %d channels cancel each other when mixed; channel %d alone is heard, the loudest",
                *(what, len(self.samples), channel),
            )
        if self._levels(samples).max(initial=0) < SILENCE_LEVEL:
            logger.warning("%s: the sound is silent (below -70 dB): the mouth will not move", what)

    def _heard(self) -> tuple[np.ndarray, int | None]:
        """What `mono` holds, (1 n), and the channel that it is where the channels cancel."""
        if len(self.samples) == 1:
            return self.samples, None
        mix, levels = self._mix(), self._levels(self.samples)
        loudest = int((levels**2).sum(axis=1).argmax())
        says_something = levels[loudest] > max(SILENCE_LEVEL, QUIET_SHARE * levels[loudest].max(initial=0))
        is_cancelled = self._levels(mix)[0] < CANCELLED_SHARE * levels[loudest]
        if says_something.any() and is_cancelled[says_something].mean() > MAX_CANCELLED_WINDOWS:
            return self.samples[loudest : loudest + 1], loudest
        return mix, None

    def _mix(self) -> np.ndarray:
        """(1 n) float32: the mix of the channels, no louder than 1 unless a channel is."""
        if len(self.samples) == 2:  # as FFmpeg mixes stereo of whole numbers
            return self.samples.mean(axis=0, keepdims=True)
        mix = _downmix_weights(len(self.samples), self.layout) @ self.samples
        peaks = [max(1.0, np.abs(samples).max(initial=0)) for samples in (mix, self.samples)]
        return mix[None] / np.float32(max(1.0, peaks[0] / peaks[1]))

    def _levels(self, samples: np.ndarray) -> np.ndarray:
        """(c n) -> (c windows): the standard deviation of each window; a constant is no sound."""
        length = max(1, min(round(LEVEL_WINDOW_SECONDS * self.sampling_rate_hz), samples.shape[1]))
        num_windows = samples.shape[1] // length
        windows = samples[:, : num_windows * length].reshape(len(samples), num_windows, length)
        # In double, since the difference is small where a constant is large; and without a copy of the samples.
        power = np.einsum("cwn,cwn->cw", windows, windows, dtype=np.float64) / length
        return np.sqrt((power - windows.mean(axis=2, dtype=np.float64) ** 2).clip(0))


def _downmix_weights(num_channels: int, layout: str | None) -> np.ndarray:
    """(c,) float32: FFmpeg's weights of the channels in one; the mean's for channels that it does not know."""
    one_sample_each = np.eye(num_channels, dtype=np.float32).reshape(1, -1)
    try:
        frame = av.AudioFrame.from_ndarray(one_sample_each, "flt", layout or LAYOUTS.get(num_channels, "unknown"))
        frame.sample_rate = WAV2VEC2_RATE_HZ
        resampler = av.AudioResampler(format="flt", layout="mono", rate=frame.sample_rate)
        [mixed] = resampler.resample(frame)
    except (ValueError, av.error.FFmpegError):
        return np.full(num_channels, 1 / num_channels, np.float32)
    return mixed.to_ndarray()[0]


def load_audio(
    path: str | os.PathLike,
    field: str = "audio_path",
    track: int | None = None,
    max_seconds: float = float("inf"),
    max_values: int = MAX_VALUES,
) -> Audio:
    """Reads the sound of an audio or video file.

    Encoder delay is removed as FFmpeg does it. Sound that starts after the file does, or pauses, is padded with
    silence, so that sample n belongs to second n / rate of the file. Damaged parts are skipped with a warning. Where
    timestamps restart or jump, see `vexpress.media.container.Clock`. Warns of sound that nobody would hear.

    Args:
        path: any file with sound that FFmpeg reads.
        field: the option that gave the path, for the error.
        track: number of the sound track, from 0; None for the default one, or else the first.
        max_seconds: longer sound is refused, by what is decoded and not by what the file says of itself.
        max_values: more samples of all channels together are refused, likewise.

    Raises:
        InputError: no such file or track, too long, nothing in it that can be decoded as sound, or samples that are no
            sound.
    """
    with open_stream(path, "audio", field, track) as (container, stream):
        file_start = file_start_seconds(container)
        first = source = resampler = None
        blocks, num_samples, num_decoded = [], 0, 0
        for frame in decode_frames(container, stream, path):
            if first is None:
                first, rate, num_channels = frame, frame.sample_rate, frame.layout.nb_channels
                if not MIN_RATE_HZ <= rate <= MAX_RATE_HZ:
                    problem = f"has {rate} samples per second, allowed are {MIN_RATE_HZ} to {MAX_RATE_HZ}"
                    raise InputError(f"{problem}; convert the sound", field, path)
                if num_channels > MAX_CHANNELS:
                    problem = f"has {num_channels} channels, allowed are up to {MAX_CHANNELS}"
                    raise InputError(f"{problem}; convert the sound", field, path)
            if source != (frame.format.name, frame.layout.name, frame.sample_rate):  # can change in mid-file
                source = (frame.format.name, frame.layout.name, frame.sample_rate)
                # Packed ("flt"), since PyAV 18 crashes on planar frames of more than 8 channels.
                resampler = av.AudioResampler(format="flt", layout=first.layout, rate=rate)
            late = 0 if frame.time is None else frame.time - file_start - num_samples / rate
            if (MAX_DRIFT_SECONDS if blocks else MAX_START_ERROR_SECONDS) < late:
                num_silent = round(late * rate)
                _check_length(num_samples + num_silent, num_channels, rate, max_seconds, max_values, field, path)
                blocks.append(np.zeros((num_silent, num_channels), np.float32))
                num_samples += num_silent
            early = round(-late * rate) if not num_samples and late < -MAX_START_ERROR_SECONDS else 0
            for converted in resampler.resample(frame):
                block = converted.to_ndarray().reshape(-1, num_channels)
                num_decoded += len(block)
                blocks.append(block[early:])  # without what comes before the file's zero
                early = max(0, early - len(block))
                num_samples += len(blocks[-1])
            _check_length(num_samples, num_channels, rate, max_seconds, max_values, field, path)
        if num_decoded == 0:
            raise InputError(f"no sound can be decoded from this file; give a sound file in `{field}`", field, path)
        if "mp4" in container.format.name and stream.duration:
            padding = num_decoded - round(stream.duration * stream.time_base * rate)
            num_samples -= padding if 0 < padding <= MAX_MP4_PADDING_SAMPLES else 0
        layout = None if "channels" in first.layout.name else first.layout.name
    audio = Audio(np.concatenate(blocks)[:num_samples].T, rate, layout)
    check_samples(audio, field, path)
    audio.warn_of_what_is_heard(os.fspath(path))
    return audio


def _check_length(
    num_samples: int,
    num_channels: int,
    rate: int,
    max_seconds: float,
    max_values: int,
    field: str,
    path: str | os.PathLike,
) -> None:
    """Raises an InputError for sound that is longer than allowed, or too long to be held."""
    if num_samples > max_seconds * rate:
        raise InputError(f"lasts longer than {max_seconds:g} s, the limit", field, path)
    if num_samples * num_channels > max_values:
        seconds = max_values / num_channels / rate
        held = f"{seconds / 3600:.3g} hours" if seconds > 3600 else f"{seconds:.3g} s"
        problem = f"is longer than the {held} that are held of {num_channels} channel(s) at {rate} Hz"
        raise InputError(f"{problem}; cut it into pieces, or convert it", field, path)


def check_samples(audio: Audio, field: str = "audio", value: object = None) -> None:
    """Raises an InputError if samples are not finite, or so large that they are no sound and cannot be encoded."""
    peak = max(audio.samples.max(initial=0), -audio.samples.min(initial=0))  # NaN if one of them is
    if not np.isfinite(peak):
        raise InputError(f"holds NaN or infinite samples; export the sound anew and give it in `{field}`", field, value)
    if peak > MAX_SAMPLE:
        problem = f"holds samples of {peak:.3g}, where sound is -1 to 1; export it anew and give it in `{field}`"
        raise InputError(problem, field, value)


def check_audio_suffix(path: str | os.PathLike, field: str) -> None:
    """Raises an InputError if sound is not written to files of this name."""
    suffix = Path(path).suffix.lower()
    if suffix == ".aac":
        problem = "a raw AAC stream cannot say where its sound starts, so that it is late by up to 64 ms; use .m4a"
        raise InputError(problem, field, path)
    if suffix not in AUDIO_CODECS:
        raise InputError(f"allowed are {', '.join(AUDIO_CODECS)}", field, path)


def write_audio(path: str | os.PathLike, audio: Audio, field: str = "audio_save_path") -> None:
    """Encodes sound at its own rate, with its own channels, so that it is read back from second 0.0 on.

    Args:
        path: file to write; its suffix, one of AUDIO_CODECS, says the format.
        audio: the sound.
        field: the option that gave the path, for the error.

    Raises:
        InputError: another suffix, or the format has no such rate or number of channels.
        OSError: the disk is full (ENOSPC) or the file cannot be written.
    """
    check_audio_suffix(path, field)
    check_samples(audio)
    suffix, num_channels, rate = Path(path).suffix.lower(), len(audio.samples), audio.sampling_rate_hz
    layout = audio.layout or LAYOUTS.get(num_channels, f"{num_channels} channels")
    # Else the length in the header of an .m4a is rounded to a millisecond.
    options = {"movie_timescale": str(rate)} if suffix == ".m4a" else {}
    with replacing(path) as temporary:
        try:
            _encode(temporary, audio, AUDIO_CODECS[suffix], layout, options)
        except (av.error.ArgumentError, av.error.EncoderNotFoundError, ValueError) as error:
            problem = f"{suffix} cannot hold {rate} Hz with {num_channels} channel(s); use .wav"
            raise InputError(problem, field, path) from error
        except av.error.OSError as error:  # names the temporary file
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def _encode(path: Path, audio: Audio, codec: str, layout: str, options: dict[str, str]) -> None:
    with av.open(f"file:{path}", "w", container_options=options) as container:
        stream = container.add_stream(codec, rate=audio.sampling_rate_hz, layout=layout)
        if codec in LOSSY_CODECS:
            stream.bit_rate = LOSSY_BITS_PER_SECOND
        for start in range(0, audio.samples.shape[1], WRITE_BLOCK_SAMPLES):
            block = audio.samples[:, start : start + WRITE_BLOCK_SAMPLES]
            # Packed, since PyAV 18 crashes on planar frames of more than 8 channels.
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block.T).reshape(1, -1), "flt", layout)
            # Without a time, AAC's delay of 1024 samples would be heard.
            frame.pts, frame.time_base = start, Fraction(1, audio.sampling_rate_hz)
            frame.sample_rate = audio.sampling_rate_hz
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
