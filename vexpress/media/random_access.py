"""Random access to the frames of a video: the k-th frame shown, exactly, while decoding little more than it."""

import itertools
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import av
import numpy as np

from vexpress.errors import InputError
from vexpress.media.container import Clock, open_stream, read_packets
from vexpress.media.display import to_pixels

# Decoders of FFmpeg that can be told, packet by packet, to leave out frames that no other is predicted from.
SKIPPING_DECODERS = ("h264", "hevc")
VERIFY_ADVICE = "check a data set with `vexpress verify`"


@dataclass(frozen=True)
class _Timeline:
    """Timestamps in units of the stream's time base.

    Attributes:
        shown: (n,) of the frames, rising.
        keyframes: (k 2) of the keyframes, rising: when they are shown, and when they are decoded.
        can_seek: whether these are the file's own timestamps; where those restart or jump, they say no place.
    """

    shown: np.ndarray
    keyframes: np.ndarray
    can_seek: bool


def count_frames(path: str | os.PathLike, field: str = "video") -> int:
    """Counts the frames that a video shows by its packets, without decoding; its header may say another number.

    Args:
        path: video file.
        field: the key or option that gave the path, for the error.

    Raises:
        InputError: no such file, or no video in it.
    """
    with open_stream(path, "video", field) as (container, stream):
        return len(_read_timeline(container, stream, path, field).shown)


def read_frames_at(path: str | os.PathLike, frame_ids: Sequence[int], field: str = "video") -> np.ndarray:
    """Decodes some frames of a video: for each group of near ones, from the keyframe before it on.

    Frame k is the one with the k-th smallest timestamp, whatever the frame rate, so that it is also the k-th of
    `vexpress.media.video.read_frames`. Frames that no other is predicted from and that nobody asked for are skipped.

    Args:
        path: video file.
        frame_ids: numbers of frames from 0, in any order, repeated or not.
        field: the key or option that gave the path, for the error.

    Returns:
        (n H W 3) uint8 RGB, upright and with square pixels, in the order of `frame_ids`.

    Raises:
        InputError: the file cannot be read, or a frame is beyond its end or damaged.
    """
    frame_ids = [int(i) for i in frame_ids]
    with open_stream(path, "video", field) as (container, stream):
        timeline = _read_timeline(container, stream, path, field)
        num_frames = len(timeline.shown)
        if max(frame_ids, default=0) >= num_frames:
            raise InputError(
                f"frame {max(frame_ids)} is needed, but {num_frames} frames are there; {VERIFY_ADVICE}", field, path
            )
        stream.thread_type = "NONE"  # a frame of delay per thread costs more than it gains
        wanted = {int(timeline.shown[i]): i for i in frame_ids}
        if timeline.can_seek:
            frames = _decode_near(container, stream, timeline, wanted)
        else:
            frames = _decode_from_start(path, field, wanted)
        pixels: dict[int, np.ndarray] = {}
        for frame in frames:  # the first of those that share a time, as `read_frames` has it
            pixels.setdefault(wanted[frame.pts], to_pixels(frame, stream))
    if missing := sorted(set(frame_ids) - set(pixels)):
        raise InputError(f"frames {missing} of {num_frames} are damaged; {VERIFY_ADVICE}", field, path)
    if len(shapes := {image.shape for image in pixels.values()}) > 1:
        raise InputError(f"its frames change in size: {sorted(shapes)}; convert it to one size", field, path)
    return np.stack([pixels[i] for i in frame_ids])


def _decode_near(
    container: av.container.InputContainer, stream: av.VideoStream, timeline: _Timeline, wanted: Collection[int]
) -> Iterator[av.VideoFrame]:
    """Yields the frames with the wanted timestamps, each group of near ones from the keyframe before it on."""
    keyframe_of = {pts: np.searchsorted(timeline.keyframes[:, 0], pts, side="right") - 1 for pts in wanted}
    for keyframe in sorted(set(keyframe_of.values())):
        group = {pts for pts in wanted if keyframe_of[pts] == keyframe}
        yield from _decode(container, stream, timeline.keyframes[: keyframe + 1], group)


def _read_timeline(
    container: av.container.InputContainer, stream: av.VideoStream, path: str | os.PathLike, field: str
) -> _Timeline:
    """Reads through the packets without decoding.

    Frames that the container cuts off are not shown, nor are those before the first keyframe, which no decoder can
    make.

    Raises:
        InputError: the timestamps do not tell the order of the frames.
    """
    if container.format.name == "avi" and stream.codec_context.has_b_frames:
        raise InputError("AVI keeps no timestamps of its B-frames; convert the video to MP4", field, path)
    shown, keyframes, leads_in = set(), set(), False
    clock = Clock()
    for packet in _readable(read_packets(container, stream, clock)):
        if packet.pts is None:  # from before Matroska's zero: not shown, but what follows is predicted from it
            leads_in |= packet.is_keyframe and not shown
            continue
        if packet.is_keyframe:
            keyframes.add((packet.pts, packet.pts if packet.dts is None else packet.dts))
        if not packet.is_discard:
            shown.add(packet.pts)
    if leads_in and not shown:
        raise InputError("keeps no timestamps of its frames; convert the video to MP4", field, path)
    first = float("-inf") if leads_in else min(keyframes, default=(float("inf"),))[0]
    return _Timeline(
        np.array(sorted(pts for pts in shown if pts >= first), np.int64),
        np.array(sorted(keyframes), np.int64).reshape(-1, 2),
        not clock.breaks and not leads_in,
    )


def _readable(packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
    """Packets that hold something, up to where the file can be read."""
    try:
        yield from (packet for packet in packets if packet.size)
    except av.error.FFmpegError:
        return


def _decode_from_start(path: str | os.PathLike, field: str, wanted: Collection[int]) -> Iterator[av.VideoFrame]:
    """Yields the frames with the wanted timestamps, decoding all up to the last of them."""
    with open_stream(path, "video", field) as (container, stream):  # seeking back would need timestamps that say places
        num_left = len(wanted)
        packets = _readable(read_packets(container, stream, Clock()))
        for packet in itertools.chain(packets, [None]):
            for frame in _wanted_frames(stream.codec_context, packet, wanted):
                yield frame
                num_left -= 1
            if not num_left:
                return


def _decode(
    container: av.container.InputContainer, stream: av.VideoStream, keyframes: np.ndarray, wanted: Collection[int]
) -> Iterator[av.VideoFrame]:
    """Yields the frames with the wanted timestamps, as far as they can be decoded, from the last of `keyframes` on."""
    for timestamp in keyframes[::-1].flatten():  # MP4 seeks by the time of showing, MPEG-TS by that of decoding
        container.seek(int(timestamp), stream=stream)
        packets = (packet for packet in _readable(container.demux(stream)) if packet.pts is not None)
        first = next(packets, None)
        if first is not None and first.is_keyframe and first.pts <= keyframes[-1, 0]:
            break
    else:
        return
    codec, waiting = stream.codec_context, set(wanted)
    can_skip = codec.codec.name in SKIPPING_DECODERS
    for packet in itertools.chain([first], packets):
        if can_skip:
            codec.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
        waiting.discard(packet.pts)
        yield from _wanted_frames(codec, packet, wanted)
        if not waiting:  # what they are predicted from came before them
            break
    yield from _wanted_frames(codec, None, wanted)


def _wanted_frames(
    codec: av.VideoCodecContext, packet: av.Packet | None, wanted: Collection[int]
) -> Iterator[av.VideoFrame]:
    """Feeds a packet, or the end of the stream, to the decoder; yields what comes out of it and is wanted."""
    try:
        yield from (frame for frame in codec.decode(packet) if frame.pts in wanted)
    except av.error.FFmpegError:  # damaged: the caller sees which frames are missing
        return
