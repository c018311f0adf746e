"""Sound: read from any file that FFmpeg can decode, at its own rate and with its own channels.

`open_stream`, `decode_frames` and `file_start_seconds` serve video.py as well.
"""

import contextlib
import dataclasses
import logging
import os
import stat
from collections.abc import Iterator

import av
import numpy as np
import torch

from vexpress.runtime import InputError

logger = logging.getLogger(__name__)

WAV2VEC2_RATE_HZ = 16000
# A first frame this late is real silence, not the rounding of a timestamp; later on, clocks of recorders jitter more.
MAX_START_ERROR_SECONDS = 0.01
MAX_DRIFT_SECONDS = 0.1
# A jump beyond this is a broken clock, not silence.
MAX_SILENCE_SECONDS = 600
# A difference to the header's duration below this is rounding.
MAX_HEADER_ERROR_SECONDS = 0.5
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


def load_audio(path: str | os.PathLike, flag: str = "--audio_path") -> Audio:
    """Reads the sound of an audio or video file.

    Encoder delay is removed as FFmpeg does it. Sound that starts after the file does, or pauses, is padded with
    silence, so that sample n belongs to second n / rate of the file. Damaged parts are skipped with a warning.

    Args:
        path: any file with sound that FFmpeg reads.
        flag: the option that gave the path, for the error.

    Raises:
        InputError: no such file, or nothing in it that can be decoded as sound.
    """
    with open_stream(path, "audio", flag) as (container, stream):
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
            raise InputError(f"{flag} {path}: no sound can be decoded from this file; give a sound file in {flag}")
        if "mp4" in container.format.name and stream.duration:
            padding = num_decoded - round(stream.duration * stream.time_base * rate)
            num_samples -= padding if 0 < padding <= MAX_MP4_PADDING_SAMPLES else 0
    samples = np.concatenate(blocks)[:num_samples].T
    if not np.isfinite(samples).all():
        raise InputError(f"{flag} {path}: holds NaN or infinite samples; export the sound anew and give it in {flag}")
    return Audio(samples, rate)


@contextlib.contextmanager
def open_stream(
    path: str | os.PathLike, kind: str, flag: str
) -> Iterator[tuple[av.container.InputContainer, av.stream.Stream]]:
    """Opens a media file and finds its first stream of a kind; cover pictures are no video.

    Args:
        path: file name; every character is taken as it is, none as a protocol or a pattern.
        kind: "audio" or "video".
        flag: the option that gave the path, for the error.

    Raises:
        InputError: no such file, not readable, not a media file, or no such stream that can be decoded.
    """
    advice = f"give a file with {kind} in {flag}"
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(f"{flag} {path}: cannot be read ({error.strerror}); {advice}") from error
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{flag} {path}: is a folder; {advice}")
    if stat.S_ISREG(status.st_mode) and status.st_size == 0:
        raise InputError(f"{flag} {path}: the file is empty (0 bytes); {advice}")
    try:
        # "file:" stops names such as a:b.mp3 from being a protocol; tags in other encodings must not stop the reading.
        container = av.open(f"file:{os.fspath(path)}", metadata_errors="replace")
    except av.error.FFmpegError as error:
        raise InputError(f"{flag} {path}: FFmpeg cannot read it ({error.strerror}); {advice}") from error
    with container:
        streams = [stream for stream in media_streams(container) if stream.type == kind]
        if not streams:
            raise InputError(f"{flag} {path}: has no {kind} that FFmpeg can decode, or is cut off; {advice}")
        yield container, streams[0]


def media_streams(container: av.container.InputContainer) -> list[av.stream.Stream]:
    """Lists the audio and video streams that can be decoded, without cover pictures and texts (FFmpeg plays those)."""
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams if stream.type in ("audio", "video")]
    if container.format.name == "tty":
        return []
    return [stream for stream in streams if stream.codec_context is not None and not stream.disposition & cover]


def file_start_seconds(container: av.container.InputContainer) -> float:
    """Returns the time at which the first audio or video stream starts: the zero of what is shown and heard."""
    streams = media_streams(container)
    return float(min((s.start_time * s.time_base for s in streams if s.start_time is not None), default=0))


def decode_frames(
    container: av.container.InputContainer, stream: av.stream.Stream, path: str | os.PathLike
) -> Iterator[av.frame.Frame]:
    """Decodes a stream, going on after damaged packets; one warning at the end says what could be read."""
    num_damaged, start, end = 0, None, 0.0
    try:
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                num_damaged += 1
                continue
            for frame in frames:
                if frame.pts is not None:
                    start = frame.time if start is None else start
                    end = float((frame.pts + (frame.duration or 0)) * frame.time_base)
                yield frame
    except av.error.FFmpegError:  # the file cannot be read on from here
        num_damaged += 1
    if start is None:  # nothing was read, which is the caller's error to raise
        return
    promised = stream.duration * stream.time_base if stream.duration else 0
    if not promised and len(container.streams) == 1:
        promised = (container.duration or 0) / av.time_base
    if num_damaged or end - start < promised - MAX_HEADER_ERROR_SECONDS:
        logger.warning(
            "%s: damaged or cut off: %.2f s of %s could be read (by its header: %.2f s), %d damaged packets skipped",
            *(path, end - start, stream.type, promised, num_damaged),
        )
