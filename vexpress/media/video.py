"""Video: probe, read, bring to a constant frame rate, and write with sound."""

import bisect
import collections
import dataclasses
import itertools
import os
import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction

import av
import numpy as np

from vexpress.errors import InputError
from vexpress.files import replacing
from vexpress.media.audio import Audio, check_samples
from vexpress.media.container import Clock, decode_frames, file_start_seconds, media_streams, open_stream
from vexpress.media.display import shown_size, to_pixels, warn_of_hdr
from vexpress.media.encoding import (
    add_audio_stream,
    add_video_stream,
    audio_frame,
    encodable,
    encode_frames,
    open_output,
)

MIN_FPS, MAX_FPS = 0.1, 240
# Containers round timestamps to a millisecond: a frame that is late by less is on time.
TIMESTAMP_ERROR_SECONDS = 1e-3


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """What a video file holds, by its header and first frame.

    Width and height are in px as shown: with square pixels, after the rotation of phones.
    """

    width: int
    height: int
    fps: Fraction
    duration_seconds: float
    has_audio: bool


def probe_video(path: str | os.PathLike, field: str = "video_path") -> VideoInfo:
    """Reads what a video file holds; its first frame is decoded, so that a file that passes can be read.

    Raises:
        InputError: no such file, no video in it, or nothing that can be decoded.
    """
    with open_stream(path, "video", field) as (container, stream):
        frame = next(decode_frames(container, stream, path), None)
        fps = _stream_fps(stream)
        if frame is None or not fps:
            raise InputError(f"no frame of the video can be decoded; give a whole video in `{field}`", field, path)
        if stream.duration:
            duration = float(stream.duration * stream.time_base)
        elif container.duration:
            duration = container.duration / av.time_base
        else:  # as recorders in browsers leave it
            packets = [packet for packet in container.demux(stream) if packet.pts is not None]
            ends = [(packet.pts + (packet.duration or 0)) * packet.time_base for packet in packets]
            duration = max(ends, default=1 / fps) - file_start_seconds(container)
        has_audio = any(other.type == "audio" for other in media_streams(container))
        return VideoInfo(*shown_size(frame, stream), fps, float(duration), has_audio)


def check_rate(info: VideoInfo, path: str | os.PathLike, field: str = "video_path") -> None:
    """Raises an InputError if a video's own rate is none that is worked at, see `frame_rate`."""
    if not MIN_FPS <= info.fps <= MAX_FPS:
        problem = f"has {float(info.fps):g} frames per second, allowed are {MIN_FPS} to {MAX_FPS}; convert the video"
        raise InputError(problem, field, path)


def read_frames(path: str | os.PathLike, field: str = "video_path") -> Iterator[tuple[float, np.ndarray]]:
    """Decodes a video lazily in the order in which it is shown, as a player shows it: upright, with square pixels.

    Times rise strictly, frames have one size. Damaged parts are skipped with a warning. Where timestamps restart or
    jump, see `vexpress.media.container.Clock`. Where a picture starts a part of a frame later than the sound, its time
    is rounded to the nearest whole frame.

    Yields:
        Seconds since the start of the file, and the frame: (H W 3) uint8 RGB.

    Raises:
        InputError: at the first frame: no such file, no video in it, or nothing that can be decoded; later: the size
            changes.
    """
    with open_stream(path, "video", field) as (container, stream):
        stream.thread_type = "AUTO"
        file_start, fps = file_start_seconds(container), _stream_fps(stream)
        clock, index, shift, num_breaks, last, size = Clock(path), -1, 0.0, -1, float("-inf"), None
        for index, frame in enumerate(_shown_frames(container, stream, decode_frames(container, stream, path, clock))):
            seconds = index / (fps or 1) if frame.time is None else frame.time - file_start
            if index == 0:
                warn_of_hdr(frame, path)
            breaks = bisect.bisect(clock.breaks, seconds + file_start + TIMESTAMP_ERROR_SECONDS)
            if breaks != num_breaks:  # a stretch begins whose frames are evenly spaced from here on
                num_breaks, shift = breaks, round(seconds * fps) / fps - seconds if fps and fps <= MAX_FPS else 0.0
            if seconds + shift <= last:  # a player shows one of those that share a time; random access, too
                continue
            last = float(seconds + shift)
            pixels = to_pixels(frame, stream)
            if size not in (None, pixels.shape[:2]):
                sizes = " to ".join(f"{width}x{height}" for height, width in (size, pixels.shape[:2]))
                raise InputError(f"its frames change in size, from {sizes} px; convert it to one size", field, path)
            size = pixels.shape[:2]
            yield last, pixels
        if index < 0:
            raise InputError(f"no frame of the video can be decoded; give a whole video in `{field}`", field, path)


def pick_frames(path: str | os.PathLike, numbers: Collection[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yields some frames with their numbers, as `read_frames` counts them: also where damaged ones are left out.

    `vexpress.media.random_access` need not decode the others, and counts by packets.
    """
    for number, (_, frame) in zip(range(max(numbers) + 1), read_frames(path)):
        if number in numbers:
            yield number, frame


def _shown_frames(
    container: av.container.InputContainer, stream: av.VideoStream, frames: Iterator[av.VideoFrame]
) -> Iterator[av.VideoFrame]:
    """Leaves out frames from before Matroska's zero, which have no time: `start_time` is of the first one that has."""
    if "matroska" in container.format.name and stream.start_time is not None:
        return itertools.dropwhile(lambda frame: frame.time is None, frames)
    return frames


def _stream_fps(stream: av.VideoStream) -> Fraction | None:
    """The guessed rate holds where a lost frame bends the average, but is the clock's rate for some files."""
    rates = [rate for rate in (stream.guessed_rate, stream.average_rate) if rate]
    return next((rate for rate in rates if rate <= MAX_FPS), rates[0] if rates else None)


def constant_rate(frames: Iterable[tuple[float, np.ndarray]], fps: Fraction | float | int) -> Iterator[np.ndarray]:
    """Resamples frames to a constant rate as a player shows them: at i / fps, the latest frame that is due.

    Lazily. Before the first frame is due, it is shown already. The last frame is held for the median spacing, and
    round(duration * fps) frames are made, at least one.

    Args:
        frames: pairs of seconds, rising, and a frame.
        fps: frames per second of the result, see `frame_rate`.
    """
    fps = float(frame_rate(fps))
    times: list[float] = []
    decided: collections.deque[np.ndarray] = collections.deque()  # not yet sure to be before the end
    num_decided = num_out = 0
    shown = None
    for seconds, frame in frames:
        times.append(seconds)
        while num_decided / fps < seconds - TIMESTAMP_ERROR_SECONDS:
            decided.append(frame if shown is None else shown)
            num_decided += 1
        shown = frame
        while decided and num_out < round(seconds * fps):
            yield decided.popleft()
            num_out += 1
    if not times:
        return
    spacing = statistics.median(b - a for a, b in itertools.pairwise(times)) if len(times) > 1 else 1 / fps
    for _ in range(num_out, max(1, round((times[-1] + spacing) * fps))):
        yield decided.popleft() if decided else shown


def frame_rate(fps: Fraction | float | int, field: str = "fps") -> Fraction:
    """Turns a frame rate into an exact one; 23.976, 29.97 and 59.94 become 24000/1001 and so on.

    Raises:
        InputError: NaN, or not within MIN_FPS to MAX_FPS.
    """
    value = float(fps)
    if not MIN_FPS <= value <= MAX_FPS:
        raise InputError(f"allowed are {MIN_FPS} to {MAX_FPS} frames per second", field, fps)
    if isinstance(fps, int | Fraction):
        return Fraction(fps)
    ntsc = Fraction(round(value) * 1000, 1001)
    return ntsc if abs(value - ntsc) < 5e-4 else Fraction(value).limit_denominator(1001)


def write_video(
    path: str | os.PathLike,
    frames: Iterable[np.ndarray],
    fps: Fraction | float | int,
    audio: Audio | None = None,
    crf: int = 18,
    keyframe_interval: int = 250,
    metadata: Mapping[str, str] | None = None,
    times: Sequence[float] | None = None,
    is_lossless: bool = False,
) -> int:
    """Writes an MP4 of H.264 (yuv420p, BT.709) and AAC, frame by frame, so that memory does not grow with length.

    The sound is cut, or padded with silence, to the video's length. Stereo stays; more channels are mixed to one.
    Whatever goes wrong, also in `frames`, leaves no file behind and an older file at `path` as it was.

    Args:
        path: file to write, whatever its suffix.
        frames: (H W 3) uint8 RGB, all of one size.
        fps: frames per second, see `frame_rate`.
        audio: sound from the first frame on; None for none.
        crf: quality of x264, 0 (best) to 51; 18 is visually lossless.
        keyframe_interval: most frames from one keyframe to the next; fewer make frames quicker to reach and the file
            larger.
        metadata: kept in the file as it is, by names of any kind.
        times: when each frame is shown, in seconds, rising from 0; then `fps` is the last one's alone.
        is_lossless: Matroska of FFV1 (RGB) and FLAC in place of MP4: every pixel as it is, at any size.

    Returns:
        Number of frames written.

    Raises:
        InputError: no frames, an odd width or height, an fps out of range, or samples that are no sound.
        OSError: the disk is full (ENOSPC) or the file cannot be written.
    """
    fps = frame_rate(fps)
    if audio is not None:
        check_samples(audio)
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise InputError(f"{path}: there is no frame to write; the input is too short for a single frame")
    height, width, _ = first.shape
    if not is_lossless and (height % 2 or width % 2):
        raise InputError(
            f"frames of {width}x{height} cannot be H.264: `image_width` and `image_height` must be even numbers"
        )
    audio = audio and encodable(audio, is_lossless)
    with replacing(path) as temporary:
        try:
            frames = itertools.chain([first], frames)
            with open_output(temporary, audio, dict(metadata or {}), is_lossless) as container:
                quality = {"crf": str(crf), "g": str(keyframe_interval)}
                video_stream = add_video_stream(
                    container, (width, height), fps, quality, times is not None, is_lossless
                )
                return encode_frames(container, video_stream, frames, fps, audio, times)
        except av.error.OSError as error:  # names the temporary file
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def replace_sound(path: str | os.PathLike, audio: Audio) -> None:
    """Gives an MP4 that `write_video` wrote other sound; its pictures stay bit by bit.

    Args:
        path: of the file, which is replaced.
        audio: sound from the first frame on.

    Raises:
        InputError: the file cannot be read, or samples that are no sound.
        OSError: the disk is full (ENOSPC).
    """
    check_samples(audio)
    audio, num_frames, position = encodable(audio), 0, 0
    options = {"movflags": "+faststart", "movie_timescale": str(audio.sampling_rate_hz)}
    with (
        replacing(path) as temporary,
        open_stream(path, "video", "video_path") as (source, stream),
        av.open(f"file:{temporary}", "w", format="mp4", container_options=options) as container,
    ):
        video_stream, audio_stream = container.add_stream_from_template(stream), add_audio_stream(container, audio)
        for packet in source.demux(stream):
            if packet.dts is None:  # the end
                continue
            packet.stream = video_stream
            container.mux(packet)
            num_frames += 1
            end = round(num_frames / stream.guessed_rate * audio.sampling_rate_hz)
            container.mux(audio_stream.encode(audio_frame(audio, position, end)))
            position = end
        container.mux(audio_stream.encode(None))
