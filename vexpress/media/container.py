"""Media files: opening them, choosing a stream, one clock for all streams, and decoding past damage."""

import contextlib
import functools
import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

import av

from vexpress.errors import InputError, first_line

logger = logging.getLogger(__name__)

# What FFmpeg and PyAV raise on files that make no sense.
PARSER_ERRORS = (av.error.FFmpegError, ValueError, ArithmeticError, MemoryError)
# Demuxers of playlists and scripts, which FFmpeg finds by content and not by name: they read other files, wait for more
# of a live stream, or synthesize without end. And those that capture a device.
NO_MEDIA_FORMATS = {
    *("avisynth", "concat", "dash", "hls", "image2", "image2pipe", "imf", "sbg", "vapoursynth", "webm_dash_manifest"),
    *("rtp", "rtsp", "sap", "sdp", "fbdev", "kmsgrab", "lavfi", "video4linux2", "x11grab", "xcbgrab"),
}
# A difference to the header's duration below this is rounding.
MAX_HEADER_ERROR_SECONDS = 0.5
# A stream whose timestamps fall by more has started anew, as in files that were joined byte by byte.
MIN_RESTART_SECONDS = 0.1
# A longer stretch without any packet of sound or video is a broken clock, not a pause (FFmpeg's own limit, too).
MAX_JUMP_SECONDS = 10
# What a packet says of its length is not believed beyond this: the last one before a jump says that of the jump.
MAX_PACKET_SECONDS = 1


@contextlib.contextmanager
def open_stream(
    path: str | os.PathLike, kind: str, field: str, track: int | None = None
) -> Iterator[tuple[av.container.InputContainer, av.stream.Stream]]:
    """Opens a media file and chooses the stream that a player plays; cover pictures are no video.

    Args:
        path: file name; every character is taken as it is, none as a protocol or a pattern.
        kind: "audio" or "video".
        field: the option that gave the path, for the error.
        track: number among the streams of this kind, from 0; None for the one that the file marks as the default,
            or else the first.

    Raises:
        InputError: no such file, not readable, not a media file, or no such stream that can be decoded.
    """
    advice = f"give a file with {kind} in `{field}`"
    try:
        status = os.stat(path)
    except ValueError as error:  # a NUL in the name
        raise InputError(f"is no file name ({error}); {advice}", field, repr(os.fspath(path))) from error
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror}); {advice}", field, path) from error
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"is a folder; {advice}", field, path)
    if not stat.S_ISREG(status.st_mode):  # it is read more than once, and a pipe might never answer
        raise InputError(f"is a device or pipe, not a file; {advice}", field, path)
    if status.st_size == 0:
        raise InputError(f"the file is empty (0 bytes); {advice}", field, path)
    try:
        # "file:" stops names such as a:b.mp3 from being a protocol; tags in other encodings must not stop the reading.
        options = {"format_whitelist": media_formats()}
        container = av.open(f"file:{os.fspath(path)}", metadata_errors="replace", options=options)
    except PARSER_ERRORS as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        if isinstance(error, av.error.ArgumentError):
            reason = "it is a playlist, a script, or of no known format: the media file itself is needed"
        raise InputError(f"FFmpeg cannot read it ({reason}); {advice}", field, path) from error
    with container:
        stream = _choose_stream(container, kind, field, path, track)
        try:
            yield container, stream
        except PARSER_ERRORS as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"FFmpeg cannot read it ({first_line(error)}); {advice}", field, path) from error


@functools.cache
def media_formats() -> str:
    """FFmpeg's names of the formats that may be read, with commas."""
    names = set()
    for name in av.formats_available:
        with contextlib.suppress(ValueError):  # one that is only written
            names |= set(av.ContainerFormat(name, "r").name.split(","))
    return ",".join(sorted(names - NO_MEDIA_FORMATS))


def _choose_stream(
    container: av.container.InputContainer, kind: str, field: str, path: str | os.PathLike, track: int | None
) -> av.stream.Stream:
    """The stream of a kind that was asked for or that a player plays; says which, where there are several."""
    cover = av.stream.Disposition.attached_pic
    all_streams = [s for s in container.streams if s.type == kind and not s.disposition & cover]
    usable = [stream for stream in media_streams(container) if stream.type == kind]
    if not usable:
        advice = f"give a file with {kind} in `{field}`"
        raise InputError(f"has no {kind} that FFmpeg can decode, or is cut off; {advice}", field, path)
    if track is None:
        chosen = next((s for s in usable if s.disposition & av.stream.Disposition.default), usable[0])
    elif not 0 <= track < len(all_streams):
        allowed = f"{path} has {len(all_streams)} {kind} track(s): allowed are 0 to {len(all_streams) - 1}"
        raise InputError(allowed, f"{kind}_track", track)
    else:
        chosen = all_streams[track]
        if chosen not in usable:
            raise InputError(f"FFmpeg cannot decode this track of {path}", f"{kind}_track", track)
    if len(all_streams) > 1:
        why = "as asked" if track is not None else "the default" if chosen.disposition & 1 else "the first"
        logger.info(
            "%s: %s track %d of 0 to %d is used (%s)",
            *(path, kind, all_streams.index(chosen), len(all_streams) - 1, why),
        )
    return chosen


def media_streams(container: av.container.InputContainer) -> list[av.stream.Stream]:
    """Lists the audio and video streams that can be decoded, without cover pictures and texts (FFmpeg plays those)."""
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams if stream.type in ("audio", "video")]
    if container.format.name == "tty":
        return []
    return [stream for stream in streams if stream.codec_context is not None and not stream.disposition & cover]


def file_start_seconds(container: av.container.InputContainer) -> float:
    """Returns the time at which the first audio or video stream starts: the zero of what is shown and heard.

    Sound before time zero is what the decoder needs to get going and drops (the pre-roll of Opus, for one).
    """
    starts = [
        max(0.0, start) if stream.type == "audio" else start
        for stream in media_streams(container)
        if stream.start_time is not None
        for start in [float(stream.start_time * stream.time_base)]
    ]
    return min(starts, default=0.0)


@dataclass
class _Span:
    """A stretch of a file in which the timestamps of all streams belong together.

    Attributes:
        shift: seconds to add to its timestamps.
        last: latest decoding timestamp so far, in the file's own seconds.
    """

    shift: float
    last: float


class Clock:
    """Gives the packets of a file timestamps that run on where the file's own restart or jump.

    One clock for all streams, fed with the packets of all of them in the file's order, so that reading the sound and
    reading the video come to the same times. What restarts goes on at the end of what came before. A jump forward of
    more than MAX_JUMP_SECONDS in all streams is cut, with a warning.

    Args:
        path: for the messages; None for none.

    Attributes:
        cut_seconds: sum of what was cut.
        breaks: when the file's own timestamps restarted or jumped, in seconds of this clock.
    """

    def __init__(self, path: str | os.PathLike | None = None):
        self.log = logger.log if path is not None else lambda *_: None
        self.path = path
        self.cut_seconds = 0.0
        self.breaks: list[float] = []
        self._spans: list[_Span] = []
        self._span_of: dict[int, _Span] = {}  # stream -> the span that it is in
        self._has_dts: set[int] = set()  # streams that have shown a decoding time
        self._first: dict[int, int] = {}  # stream -> first timestamp, of streams without decoding times
        self._last: dict[int, float] = {}  # stream -> its latest timestamp, in the file's own seconds
        self._tick: dict[int, float] = {}  # stream -> its time base in seconds
        self._longest: dict[int, float] = {}  # stream -> length of its longest packet in seconds
        self._end = 0.0  # of all packets so far, in seconds of this clock

    def retime(self, packet: av.Packet) -> None:
        """Moves a packet's timestamps onto this clock; a packet without any stays as it is."""
        index = packet.stream_index
        stamp = packet.pts if packet.dts is None else packet.dts
        if stamp is None:
            return
        if index not in self._has_dts:  # as Matroska begins: times of showing, which go back and forth, say no restart
            if packet.dts is None:
                stamp = self._first.setdefault(index, stamp)
            else:
                self._has_dts.add(index)
                self._last.pop(index, None)
        if index not in self._tick:
            self._tick[index] = float(packet.time_base)  # kept, since fractions are slow
        seconds = stamp * self._tick[index]
        shown = seconds if packet.pts is None else packet.pts * self._tick[index]
        span = self._find_span(index, seconds, shown)
        span.last = max(span.last, seconds)
        self._last[index] = seconds
        self._span_of[index] = span
        if not packet.is_discard:
            self._end = max(self._end, shown + span.shift + self._length(index, packet.duration or 0))
        if span.shift:
            ticks = round(span.shift / packet.time_base)
            packet.pts = None if packet.pts is None else packet.pts + ticks
            packet.dts = None if packet.dts is None else packet.dts + ticks

    def _length(self, stream_index: int, duration: int) -> float:
        """Seconds of a packet with this duration."""
        longest = self._longest.get(stream_index, 0.0)
        length = duration * self._tick[stream_index]
        if length > MAX_PACKET_SECONDS:
            return longest
        self._longest[stream_index] = max(longest, length)
        return length

    def _find_span(self, stream_index: int, seconds: float, shown: float) -> _Span:
        """The span of a packet with this decoding and showing time; a new one where the clock breaks."""
        if not self._spans:
            self._spans.append(_Span(0.0, seconds))
            self._end = shown
        newest = self._spans[-1]
        mine = self._span_of.get(stream_index, newest)
        last = self._last.get(stream_index, seconds)
        if mine is not newest:  # another stream has broken off already; this one may have some packets left before it
            is_left = seconds >= last - MIN_RESTART_SECONDS and abs(seconds - mine.last) < abs(seconds - newest.last)
            return mine if is_left else newest
        if seconds < last - MIN_RESTART_SECONDS:
            self.log(logging.INFO, "%s: timestamps restart at %.2f s, and go on from there", self.path, self._end)
        elif seconds > newest.last + MAX_JUMP_SECONDS:
            jump = shown + newest.shift - self._end
            self.cut_seconds += jump
            self.log(
                logging.WARNING,
                "%s: timestamps jump from %.2f s on by %.1f s without sound or video; what is longer than %d s is cut",
                *(self.path, self._end, jump, MAX_JUMP_SECONDS),
            )
        else:
            return newest
        self.breaks.append(self._end)
        self._spans.append(_Span(self._end - shown, seconds))
        return self._spans[-1]


def read_packets(
    container: av.container.InputContainer, stream: av.stream.Stream, clock: Clock
) -> Iterator[av.packet.Packet]:
    """Yields the packets of a stream from the file's start on, with the clock's timestamps; the last one is empty.

    Raises:
        av.error.FFmpegError: the file cannot be read on.
    """
    for packet in container.demux(media_streams(container)):
        clock.retime(packet)
        if packet.stream_index == stream.index:
            yield packet


def decode_frames(
    container: av.container.InputContainer,
    stream: av.stream.Stream,
    path: str | os.PathLike,
    clock: Clock | None = None,
) -> Iterator[av.frame.Frame]:
    """Decodes a stream, going on after damaged packets; one warning at the end says what could be read.

    Args:
        container: from `open_stream`, likewise the stream.
        stream: video or audio.
        path: for the messages.
        clock: gives the times of the frames; None for a new one.
    """
    num_damaged, start, end = 0, None, 0.0
    clock = Clock(path) if clock is None else clock
    try:
        for packet in read_packets(container, stream, clock):
            try:
                frames = packet.decode()
            except (av.error.FFmpegError, ValueError):
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
    promised = float(stream.duration * stream.time_base) if stream.duration else 0.0
    if not promised and len(container.streams) == 1:
        promised = (container.duration or 0) / av.time_base
    promised -= clock.cut_seconds
    read = end - min(start, 0.0) if not stream.duration else end - start  # a file's duration counts from 0 on
    if num_damaged or read < promised - MAX_HEADER_ERROR_SECONDS:
        logger.warning(
            "%s: damaged or cut off: %.2f s of %s could be read (by its header: %.2f s), %d damaged packets skipped",
            *(path, end - start, stream.type, promised, num_damaged),
        )
