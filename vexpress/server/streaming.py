"""Fragmented MP4, which plays while it is written: in browsers by Media Source Extensions, in ffplay and in VLC."""

from collections.abc import Callable
from fractions import Fraction

import av
import numpy as np

from vexpress.media.encoding import AAC_RATES_HZ
from vexpress.media.video import frame_rate

MIME = 'video/mp4; codecs="avc1.640028,mp4a.40.2"'
FRAGMENT_SECONDS = 0.03  # a fragment ends with the first frame after so long
KEYFRAME_SECONDS = 2
BITS_PER_SECOND = 96_000


class _Sink:
    """What PyAV takes for a file that cannot be rewound."""

    def __init__(self, write: Callable[[bytes], None]):
        self._write = write

    def write(self, data: bytes) -> int:
        """Passes bytes on."""
        self._write(bytes(data))
        return len(data)


class FragmentedMp4:
    """Writes video and sound so that a player can begin with the first frame.

    Args:
        write: gets the file's bytes, in order.
        width: px, even; likewise `height`.
        fps: frames per second.
        sampling_rate_hz: of the sound, one of `AAC_RATES_HZ`.
        metadata: tags of the file.
    """

    def __init__(
        self,
        write: Callable[[bytes], None],
        width: int,
        height: int,
        fps: float,
        sampling_rate_hz: int,
        metadata: dict[str, str] | None = None,
    ):
        assert sampling_rate_hz in AAC_RATES_HZ
        self._fps, self._rate = frame_rate(fps), sampling_rate_hz
        options = {
            "movflags": "empty_moov+default_base_moof",
            "frag_duration": str(round(FRAGMENT_SECONDS * 1e6)),
            "flush_packets": "1",
        }
        self._container = av.open(_Sink(write), "w", format="mp4", options=options)
        self._container.metadata.update(metadata or {})
        quality = {
            "preset": "veryfast",
            "tune": "zerolatency",
            "crf": "20",
            "g": str(max(1, round(KEYFRAME_SECONDS * self._fps))),
        }
        self._video = self._container.add_stream("libx264", rate=self._fps, options=quality)
        self._video.width, self._video.height, self._video.pix_fmt = width, height, "yuv420p"
        self._audio = self._container.add_stream("aac", rate=sampling_rate_hz, layout="mono")
        self._audio.bit_rate = BITS_PER_SECOND
        self._num_frames = self._num_samples = 0

    def samples_due(self) -> int:
        """How many samples go with the next frame, so that sound and picture last equally long."""
        return round((self._num_frames + 1) / self._fps * self._rate) - self._num_samples

    def add(self, pixels: np.ndarray, sound: np.ndarray) -> None:
        """Adds a frame (H W 3) uint8, and its sound (n,) float32, of which missing samples are silence."""
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame.pts, frame.time_base = self._num_frames, 1 / self._fps
        self._container.mux(self._video.encode(frame))
        due = self.samples_due()
        samples = np.pad(sound[:due], (0, due - len(sound[:due]))).astype(np.float32)
        block = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="fltp", layout="mono")
        block.sample_rate, block.pts, block.time_base = self._rate, self._num_samples, Fraction(1, self._rate)
        self._mux_sound(block)
        self._num_frames += 1
        self._num_samples += due

    def _mux_sound(self, block: av.AudioFrame | None) -> None:
        # The encoder's run-up has negative times, for which a fragmented file has no edit list.
        self._container.mux([packet for packet in self._audio.encode(block) if packet.pts is None or packet.pts >= 0])

    def close(self) -> None:
        """Writes what is left."""
        if self._container is not None:
            if self._num_frames:
                self._container.mux(self._video.encode(None))
                self._mux_sound(None)
            self._container.close()
            self._container = None


def playable_rate(sampling_rate_hz: int) -> int:
    """The rate of a stream's sound, for sound that comes in at a rate: lower rates wait longer for an AAC frame."""
    return sampling_rate_hz if sampling_rate_hz in (44100, 48000) else 48000
