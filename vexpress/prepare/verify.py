"""Checks that a prepared data set is complete and consistent."""

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vexpress.audio_encoders import EncoderRecord
from vexpress.data.formats import (
    MAX_AUDIO_ERROR_SECONDS,
    PATH_KEYS,
    ClipRecord,
    FaceInfo,
    audio_length_problem,
    load_audio_states,
    load_face_info,
)
from vexpress.data.transforms import lip_corners
from vexpress.errors import InputError
from vexpress.media.container import decode_frames, open_stream
from vexpress.media.video import VideoInfo, probe_video
from vexpress.prepare.workers import follow_parent

FIELD = "video"
TABLE_HEADER = f"{'':4}  {'frames':>6}  {'fps':>6}  {'states':>6}  {'width':>5}  clip"


@dataclass
class ClipReport:
    """What was found in one clip; None where it could not be read.

    Attributes:
        video: its path.
        num_frames: frames that can be decoded.
        fps: frame rate of the video.
        num_states: steps of audio hidden states.
        width: channels of a hidden state.
        encoder: who made them.
        problems: why the clip is not usable; empty if it is.
        warnings: what is unusual but harmless.
    """

    video: Path
    num_frames: int | None = None
    fps: float | None = None
    num_states: int | None = None
    width: int | None = None
    encoder: EncoderRecord | None = None
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """One of "ok", "warn" and "FAIL"."""
        return "FAIL" if self.problems else "warn" if self.warnings else "ok"


def files_of(record: ClipRecord) -> dict[str, Path]:
    """The files of a clip, by their keys in the metadata."""
    return {key: path for key in PATH_KEYS if (path := getattr(record, key)) is not None}


def verify_clips(records: Sequence[ClipRecord], num_processes: int = 1) -> Iterator[ClipReport]:
    """Yields a report for each clip, in order.

    Raises:
        InputError: a process ended, as a damaged file or too little memory can make it.
    """
    if num_processes == 1:
        yield from map(verify_clip, records)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, mp_context=context, initializer=follow_parent) as pool:
        try:
            yield from pool.map(verify_clip, records, chunksize=4)
        except BrokenProcessPool as error:
            problem = "a process ended at work, by a damaged file or too little memory; 1 shows at which clip"
            raise InputError(problem, "num_processes", num_processes) from error


def verify_clip(record: ClipRecord) -> ClipReport:
    """Checks that a clip is usable: files can be read and match, numbers are finite, the lips are in the picture."""
    report = ClipReport(record.video)

    def attempt(function: Callable, *arguments):
        try:
            return function(*arguments)
        except InputError as error:
            report.problems.append(_printable(str(error)))
            return None

    info = attempt(probe_video, record.video, FIELD)
    measured = attempt(measure_video, record.video) if info is not None else None
    if measured is not None:
        report.num_frames, seconds = measured
    if info is not None:
        report.fps = float(info.fps)
        if not info.has_audio:
            report.warnings.append("the video has no sound")
    face_info = attempt(load_face_info, record.face_info)
    if face_info is not None:
        report.problems += find_face_problems(face_info, info)
    states = attempt(load_audio_states, record.audio_embeds)
    if states is not None:
        embeds, report.encoder = states
        report.num_states, report.width = embeds.shape
        if not embeds.isfinite().all():
            report.problems.append("audio_embeds: holds NaN or infinite values")
    counts = {
        "the video decodes to": report.num_frames,
        "face_info has": None if face_info is None else face_info.num_frames,
        "the metadata says": record.num_frames,
    }
    counts = {what: count for what, count in counts.items() if count is not None}
    if len(set(counts.values())) > 1:
        report.problems.append("frames: " + ", ".join(f"{what} {count}" for what, count in counts.items()))
    if measured is not None:
        report.problems += find_length_problems(report, record.duration, seconds)
    return report


def measure_video(path: Path) -> tuple[int, float]:
    """Decodes a whole video, since headers lie; returns the number of frames and their duration in seconds.

    Raises:
        InputError: the video cannot be read.
    """
    with open_stream(path, "video", FIELD) as (container, stream):
        stream.thread_type = "AUTO"
        times = [frame.time for frame in decode_frames(container, stream, path)]
        fps = stream.guessed_rate or stream.average_rate
    if not times:
        raise InputError("no frame can be decoded", FIELD, path)
    if len(times) > 1 and None not in times:
        return len(times), float(times[-1] - times[0]) * len(times) / (len(times) - 1)
    return len(times), float(len(times) / fps)


def find_face_problems(face_info: FaceInfo, info: VideoInfo | None) -> list[str]:
    """Lists problems of face info: values that are not finite, lips outside the picture."""
    problems = []
    for name in ("bbox", "kps", "landmark_2d_106", "det_score", "embedding"):
        values = getattr(face_info, name)
        if values is not None and not np.isfinite(values).all():
            is_bad = ~np.isfinite(values).reshape(len(values), -1).all(1)
            problems.append(f"face_info: {name} is not finite in {_frames(is_bad)}")
    if info is not None and not problems:
        is_outside = find_lips_outside(face_info, info.width, info.height)
        if is_outside.any():
            problems.append(
                f"face_info: lips outside of the {info.width}x{info.height} picture in {_frames(is_outside)}"
            )
    return problems


def find_lips_outside(face_info: FaceInfo, width: int, height: int) -> np.ndarray:
    """Returns (n,) bool: the frames in which a landmark of the lips is outside the picture of width x height px."""
    corners = lip_corners(face_info.landmark_2d_106)
    return ((corners < 0) | (corners > (width, height))).any((1, 2))


def _frames(is_bad: np.ndarray) -> str:
    bad = np.flatnonzero(is_bad)
    return f"{len(bad)} frames, the first is {bad[0]}"


def find_length_problems(report: ClipReport, duration: float | None, seconds: float) -> list[str]:
    """Lists durations that differ from that of the frames: the metadata's and that of the hidden states."""
    problems = []
    if duration is not None and abs(duration - seconds) > MAX_AUDIO_ERROR_SECONDS:
        problems.append(f"duration: the metadata says {duration:.2f} s, the frames last {seconds:.2f} s")
    if report.num_states is not None:
        problem = audio_length_problem(report.num_states, seconds, report.encoder.states_hz)
        problems += [problem] if problem else []
    return problems


def check_widths(reports: Sequence[ClipReport]) -> None:
    """Adds a problem to each clip whose hidden states have another width, or encoder, than those of most clips."""
    widths = Counter(report.width for report in reports if report.width is not None)
    [(usual, _)] = widths.most_common(1) or [(None, 0)]
    for report in reports:
        if report.width not in (None, usual):
            report.problems.append(f"audio_embeds: states of width {report.width}, most clips have {usual}")
    encoders = Counter(report.encoder for report in reports if report.encoder is not None)
    [(usual, _)] = encoders.most_common(1) or [(None, 0)]
    for report in reports:
        if report.encoder is not None and not report.encoder.fits(usual):
            report.problems.append(f"audio_embeds: made by {report.encoder}, most clips' by {usual}")


def format_report(report: ClipReport, folder: Path) -> str:
    """One line of the table; paths are relative to `folder` where they are in it."""
    facts = (
        f"{_or_dash(report.num_frames):>6}  {_or_dash(report.fps, '.2f'):>6}  {_or_dash(report.num_states):>6}  "
        f"{_or_dash(report.width):>5}"
    )
    why = "; ".join([*report.problems, *report.warnings])
    return f"{report.verdict:4}  {facts}  {shorten(report.video, folder)}{f': {why}' if why else ''}"


def _or_dash(value: float | None, form: str = "") -> str:
    return "-" if value is None else format(value, form)


def shorten(path: Path, folder: Path) -> str:
    """The path relative to `folder` if it is in it, printable."""
    path = path.resolve()
    return _printable(str(path.relative_to(folder.resolve()) if path.is_relative_to(folder.resolve()) else path))


def _printable(text: str) -> str:
    """On one line, and with a question mark for each byte of a file name that is no character."""
    return " ".join(text.split()).encode(errors="replace").decode()
