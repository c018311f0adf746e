"""Media files: opening them, finding their streams, and decoding past damage."""

import contextlib
import logging
import os
import stat
from collections.abc import Iterator

import av

from vexpress.errors import InputError

# A difference to the header's duration below this is rounding.
logger = logging.getLogger(__name__)

MAX_HEADER_ERROR_SECONDS = 0.5


@contextlib.contextmanager
def open_stream(
    path: str | os.PathLike, kind: str, field: str
) -> Iterator[tuple[av.container.InputContainer, av.stream.Stream]]:
    """Opens a media file and finds its first stream of a kind; cover pictures are no video.

    Args:
        path: file name; every character is taken as it is, none as a protocol or a pattern.
        kind: "audio" or "video".
        field: the option that gave the path, for the error.

    Raises:
        InputError: no such file, not readable, not a media file, or no such stream that can be decoded.
    """
    advice = f"give a file with {kind} in `{field}`"
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror}); {advice}", field, path) from error
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"is a folder; {advice}", field, path)
    if stat.S_ISREG(status.st_mode) and status.st_size == 0:
        raise InputError(f"the file is empty (0 bytes); {advice}", field, path)
    try:
        # "file:" stops names such as a:b.mp3 from being a protocol; tags in other encodings must not stop the reading.
        container = av.open(f"file:{os.fspath(path)}", metadata_errors="replace")
    except av.error.FFmpegError as error:
        raise InputError(f"FFmpeg cannot read it ({error.strerror}); {advice}", field, path) from error
    with container:
        streams = [stream for stream in media_streams(container) if stream.type == kind]
        if not streams:
            raise InputError(f"has no {kind} that FFmpeg can decode, or is cut off; {advice}", field, path)
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
