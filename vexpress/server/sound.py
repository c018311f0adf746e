"""Sound of a live stream: how clients send it, and how it goes on."""

from dataclasses import dataclass

import av
import numpy as np
import soxr

from vexpress.errors import InputError, first_line

ENCODINGS = ("pcm_s16le", "opus")
OPUS_RATE_HZ = 48000


@dataclass(frozen=True)
class SoundFormat:
    """How a client sends sound.

    Raises:
        InputError: it cannot be read so.
    """

    encoding: str = "pcm_s16le"
    sampling_rate: int = 16000
    channels: int = 1

    def __post_init__(self):
        if self.encoding not in ENCODINGS:
            raise InputError(f"must be one of {', '.join(ENCODINGS)}", "encoding", str(self.encoding)[:40])
        if type(self.sampling_rate) is not int or not 4000 <= self.sampling_rate <= 192000:
            raise InputError("must be 4000 to 192000 Hz", "sampling_rate", str(self.sampling_rate)[:40])
        if type(self.channels) is not int or not 1 <= self.channels <= 2:
            raise InputError("must be 1 or 2", "channels", str(self.channels)[:40])


class SoundReader:
    """Decodes the pieces of a client's sound.

    Args:
        form: how they are encoded. Opus comes as one packet per piece.
    """

    def __init__(self, form: SoundFormat):
        self.form, self._rest = form, b""
        self.rate = OPUS_RATE_HZ if form.encoding == "opus" else form.sampling_rate
        self._decoder = av.CodecContext.create("opus", "r") if form.encoding == "opus" else None

    def __call__(self, piece: bytes) -> np.ndarray:
        """A piece as (n,) float32, mono.

        Raises:
            InputError: it cannot be decoded.
        """
        if self._decoder is None:
            data = self._rest + piece
            size = 2 * self.form.channels
            whole = len(data) // size * size
            self._rest = data[whole:]
            samples = np.frombuffer(data[:whole], "<i2").reshape(-1, self.form.channels)
            return (samples.mean(axis=1) / 32768).astype(np.float32)
        try:
            frames = [frame.to_ndarray() for frame in self._decoder.decode(av.Packet(piece))]
        except av.error.FFmpegError as error:
            raise InputError(f"holds no Opus packet ({first_line(error)})", "audio") from error
        return np.concatenate([frame.mean(axis=0) for frame in frames]) if frames else np.zeros(0, np.float32)


class PlayedSound:
    """The client's sound as the stream's, as far as no frame has taken it yet."""

    def __init__(self, given_hz: int, rate: int):
        self.rate = rate
        self._resampler = None if given_hz == rate else soxr.ResampleStream(given_hz, rate, 1, "float32", quality="LQ")
        self._samples = np.zeros(0, np.float32)

    def add(self, samples: np.ndarray) -> None:
        """More of it."""
        samples = samples if self._resampler is None else self._resampler.resample_chunk(samples)
        self._samples = np.concatenate([self._samples, samples])

    def take(self, count: int) -> np.ndarray:
        """The next samples; fewer if there are not so many."""
        taken, self._samples = self._samples[:count], self._samples[count:]
        return taken
