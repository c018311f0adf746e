"""Writing video and sound into a container, frame by frame."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from vexpress.media.audio import LAYOUTS, Audio
from vexpress.media.display import CONVERSION_THREADS, EXACT_CONVERSION

# Rates of MPEG-4 AAC; others are resampled to the first.
AAC_RATES_HZ = (48000, 96000, 88200, 64000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
# Per channel, at most: FFmpeg's default of 69 kb/s for mono leaves audible errors (speech: 23 dB against 43 dB).
AAC_BITS_PER_SECOND = 192_000
# The format's own limit, 6144 bits per channel in a frame of 1024 samples; beyond it FFmpeg warns.
AAC_BITS_PER_SAMPLE = 6
# With AVX-512, unless the width is a multiple of 128 or so, x264 reads memory that nobody has written: the same frames
# make another file each time. With AVX2 they make the same one.
REPRODUCIBLE = {"x264-params": "asm=AVX2"} if torch.backends.cpu.get_cpu_capability() == "AVX512" else {}

FLAC_MAX_RATE_HZ = 655_350
LOSSLESS_FORMAT = "bgr0"  # of FFV1, for RGB of 8 bits
TIMES_BASE = Fraction(1, 90000)  # of frames that are not evenly spaced


def add_audio_stream(container: av.container.OutputContainer, audio: Audio, codec: str = "aac") -> av.AudioStream:
    """Adds the stream of the sound."""
    num_channels, rate = len(audio.samples), audio.sampling_rate_hz
    stream = container.add_stream(codec, rate=rate, layout=LAYOUTS[num_channels])
    if codec == "aac":
        stream.bit_rate = num_channels * min(AAC_BITS_PER_SECOND, AAC_BITS_PER_SAMPLE * rate)
    return stream


def open_output(
    path: Path, audio: Audio | None, metadata: dict[str, str], is_lossless: bool
) -> av.container.OutputContainer:
    """Opens a file to write: MP4, or Matroska for what is lossless."""
    if is_lossless:
        container = av.open(f"file:{path}", "w", format="matroska")
    else:
        options = {"movflags": "+faststart" + "+use_metadata_tags" * bool(metadata)}
        if audio is not None:  # else the length is rounded to a millisecond
            options["movie_timescale"] = str(audio.sampling_rate_hz)
        container = av.open(f"file:{path}", "w", format="mp4", container_options=options)
    container.metadata.update(metadata)
    return container


def add_video_stream(
    container: av.container.OutputContainer,
    size: tuple[int, int],
    fps: Fraction,
    quality: dict[str, str],
    has_times: bool,
    is_lossless: bool,
) -> av.VideoStream:
    """Adds the stream of the pictures, of a size (width, height)."""
    if is_lossless:
        stream = container.add_stream("ffv1", rate=fps, options={"level": "3", "slicecrc": "1"})
        stream.pix_fmt = LOSSLESS_FORMAT
    else:
        stream = container.add_stream("libx264", rate=fps, options=quality | REPRODUCIBLE)
        stream.pix_fmt = "yuv420p"
        tags = stream.codec_context
        tags.colorspace, tags.color_range = Colorspace.ITU709, ColorRange.MPEG
        tags.color_primaries, tags.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    stream.width, stream.height = size
    if has_times:
        stream.codec_context.time_base = TIMES_BASE
    return stream


def encode_frames(
    container: av.container.OutputContainer,
    video_stream: av.VideoStream,
    frames: Iterator[np.ndarray],
    fps: Fraction,
    audio: Audio | None,
    times: Sequence[float] | None,
) -> int:
    """Encodes all frames, and the sound beside them; gives the number of frames."""
    shape = (video_stream.height, video_stream.width, 3)
    if audio is not None:
        codec = "flac" if container.format.name == "matroska" else "aac"
        audio_stream, rate = add_audio_stream(container, audio, codec), audio.sampling_rate_hz
    num_frames = position = 0
    for num_frames, pixels in enumerate(frames, start=1):
        if pixels.shape != shape:
            raise ValueError(f"frame {num_frames - 1} has shape {pixels.shape}, the first one has {shape}")
        stamp = (num_frames - 1, 1 / fps)
        end_seconds = num_frames / fps
        if times is not None:
            stamp = (round(times[num_frames - 1] / TIMES_BASE), TIMES_BASE)
            end_seconds = times[num_frames] if num_frames < len(times) else times[-1] + 1 / fps
        container.mux(video_stream.encode(_video_frame(pixels, *stamp, video_stream.pix_fmt)))
        if audio is not None:
            end = round(end_seconds * rate)
            if end > position:  # not so between frames that are nearer than samples
                container.mux(audio_stream.encode(audio_frame(audio, position, end)))
                position = end
    container.mux(video_stream.encode(None))
    if audio is not None:
        container.mux(audio_stream.encode(None))
    return num_frames


def encodable(audio: Audio, is_lossless: bool = False) -> Audio:
    """The sound with channels and a rate that the codec takes."""
    if len(audio.samples) > 2:
        audio = audio.mono()
    if is_lossless:
        return audio if audio.sampling_rate_hz <= FLAC_MAX_RATE_HZ else audio.resampled(AAC_RATES_HZ[0])
    return audio if audio.sampling_rate_hz in AAC_RATES_HZ else audio.resampled(AAC_RATES_HZ[0])


def _video_frame(pixels: np.ndarray, stamp: int, time_base: Fraction, pix_fmt: str) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    if pix_fmt == LOSSLESS_FORMAT:
        frame = frame.reformat(format=pix_fmt, threads=CONVERSION_THREADS)
        frame.pts, frame.time_base = stamp, time_base
        return frame
    frame = frame.reformat(
        format=pix_fmt,
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        threads=CONVERSION_THREADS,
        interpolation=EXACT_CONVERSION,
    )
    frame.pts, frame.time_base = stamp, time_base
    return frame


def audio_frame(audio: Audio, start: int, end: int) -> av.AudioFrame:
    """Samples start to end, silence where the sound is over."""
    samples = audio.samples[:, start:end]
    samples = np.pad(samples, ((0, 0), (0, end - start - samples.shape[1])))
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=LAYOUTS[len(samples)])
    frame.sample_rate, frame.pts, frame.time_base = audio.sampling_rate_hz, start, Fraction(1, audio.sampling_rate_hz)
    return frame
