"""A page about a prepared data set, in one file: what is in it, what was left out and why, and how good it is."""

import base64
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vexpress.data.formats import load_rows, parse_row
from vexpress.errors import InputError
from vexpress.files import read_json, read_text
from vexpress.media.random_access import read_frames_at
from vexpress.media.video import probe_video
from vexpress.prepare.quality import PICTURE_LIMITS, REASONS, SPEECH_LIMITS, SYNC_LIMITS
from vexpress.prepare.settings import PrepareSettings

logger = logging.getLogger(__name__)

TEMPLATE = Path(__file__).with_name("data_report.html")
MAX_REJECTED_BYTES = 2**31
NUM_BINS, BAR_WIDTH, CHART_HEIGHT = 24, 12, 90  # of histograms; px
SAMPLE_PX = 160
MAX_VALUES = 20  # of a column, that are listed; the rest is one line
WORDS = {
    "seconds": "length, s",
    "bad_fraction": "share of frames without exactly one face",
    "face_px": "face in the source, px",
    "loud_fraction": "share of loud sound",
    "speech_fraction": "share of speech",
    "blur": "blur of the face",
    "brightness": "brightness of the face",
    "still_seconds": "longest still picture, s",
    "turn_degrees": "largest turn of the head, degrees",
    "occlusion": "largest share of the face that is covered",
    "identity": "likeness of the least like frame",
    "sync_confidence": "Sync-C",
    "sync_distance": "Sync-D",
    "sync_offset": "lips come late by, s",
    "sound_shift": "sound was shifted by, s",
}
"""Key of a clip's quality -> title of its histogram."""


@dataclass(frozen=True)
class Histogram:
    """One number over all clips: of those that were kept and those that were rejected.

    Attributes:
        key: in the quality; likewise `title`, in words.
        low: of the first bin; `high` of the last.
        kept: (bins) number of clips; likewise `rejected`.
        limits: position 0..1 and words of the settings that decide.
        median: of kept clips; None without any.
    """

    key: str
    title: str
    low: float
    high: float
    kept: list[int]
    rejected: list[int]
    limits: list[tuple[float, str]]
    median: float | None


@dataclass(frozen=True)
class Sample:
    """A picture of a clip: `picture` is a data URL, None if its file is not there."""

    title: str
    picture: str | None


def build_report(meta_path: Path, group_by: Sequence[str] = (), num_samples: int = 6) -> str:
    """Builds the page.

    Args:
        meta_path: metadata JSON that preparation wrote; rejected.jsonl and settings.json are read beside it, if there.
        group_by: columns by whose values minutes are counted; of language and person, those that are there also are.
        num_samples: most pictures of kept clips, and of each reason.

    Returns:
        HTML that needs no other file.

    Raises:
        InputError: no such metadata, no clips and no rejections in it, or a column that no row has.
    """
    import jinja2

    folder, rows = meta_path.parent, load_rows(meta_path)
    for number, row in enumerate(rows, 1):
        parse_row(row, folder, f"metadata {meta_path} row {number} of {len(rows)}")
    rejected, settings = _read_rejected(folder / "rejected.jsonl"), _read_settings(folder / "settings.json")
    if not rows and not rejected:
        raise InputError("holds no clips, and nothing was rejected", "meta_path", meta_path)
    there = {key for row in rows for key in row}
    columns = dict.fromkeys([*(key for key in ("language", "person") if key in there), *group_by])
    if missing := [column for column in group_by if column not in there]:
        raise InputError("no clip has this column", "group_by", missing[0])
    reasons = Counter(row["reason"] for row in rejected)
    seconds = [float(row.get("duration", 0)) for row in rows]
    kept_samples = [_kept_sample(rows[i], folder) for i in _spread(len(rows), num_samples)]
    options = {"autoescape": True, "undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    template = jinja2.Environment(**options).from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        name=str(meta_path),
        num_clips=len(rows),
        minutes=sum(seconds) / 60,
        num_rejected=len(rejected),
        rejected_minutes=sum(_seconds_of(row) for row in rejected) / 60,
        reasons=[(name, count, REASONS.get(name, "")) for name, count in reasons.most_common()],
        most=max(reasons.values(), default=1),
        groups={column: _minutes_by(rows, column) for column in columns},
        histograms=_histograms(rows, rejected, settings),
        samples={"kept": kept_samples} | _rejected_samples(rejected, settings.get("input_dir"), num_samples),
        settings={key: settings[key] for key in sorted(settings)},
        bar_width=BAR_WIDTH,
        height=CHART_HEIGHT,
    )


def _read_rejected(path: Path) -> list[dict]:
    """Rows of rejected.jsonl; none if there is no such file.

    Raises:
        InputError: it is damaged.
    """
    if not path.is_file():
        return []
    try:
        rows = [json.loads(line) for line in read_text(path, MAX_REJECTED_BYTES).splitlines()]
        if not all(isinstance(row, dict) and isinstance(row.get("reason"), str) for row in rows):
            raise ValueError("a line is no rejection")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: is damaged ({error}); prepare again") from error
    return rows


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = read_json(path)
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _seconds_of(row: Mapping[str, Any]) -> float:
    """How long what was rejected lasts; 0 for a whole source, whose length nobody measured."""
    times = [row.get(key) for key in ("start_seconds", "end_seconds")]
    return float(times[1] - times[0]) if all(_is_number(time) for time in times) else 0.0


def _minutes_by(rows: Iterable[Mapping[str, Any]], column: str) -> list[tuple[str, float, int]]:
    """Value, minutes and clips, the most minutes first; the rarest values together."""
    seconds: dict[str, float] = defaultdict(float)
    counts: Counter = Counter()
    for row in rows:
        value = str(row.get(column, "unknown"))
        seconds[value] += float(row.get("duration", 0))
        counts[value] += 1
    ordered = sorted(seconds, key=lambda value: (-seconds[value], value))
    named, rest = ordered[:MAX_VALUES], ordered[MAX_VALUES:]
    table = [(value, seconds[value] / 60, counts[value]) for value in named]
    if rest:
        table.append((f"{len(rest)} others", sum(seconds[v] for v in rest) / 60, sum(counts[v] for v in rest)))
    return table


# ---- histograms ----------------------------------------------------------------------------------------------------


def _histograms(rows: Sequence[dict], rejected: Sequence[dict], settings: Mapping[str, Any]) -> list[Histogram]:
    """One for each of WORDS that was measured."""
    limits = {field.name: settings.get(field.name, field.default) for field in fields(PrepareSettings)}
    result = []
    for key, title in WORDS.items():
        kept, left_out = ([row["quality"][key] for row in some if _has(row, key)] for some in (rows, rejected))
        if not kept and not left_out:
            continue
        low, high = min(kept + left_out), max(kept + left_out)
        high = high if high > low else low + 1
        bins = [np.histogram(values, NUM_BINS, (low, high))[0].tolist() for values in (kept, left_out)]
        lines = [
            ((limits[limit.setting] - low) / (high - low), f"{limit.setting} {limits[limit.setting]:g}")
            for limit in (*SPEECH_LIMITS, *PICTURE_LIMITS, *SYNC_LIMITS)
            if limit.key == key and _is_number(limits[limit.setting])
        ]
        lines = [(place, text) for place, text in lines if 0 <= place <= 1]
        result.append(Histogram(key, title, low, high, *bins, lines, float(np.median(kept)) if kept else None))
    return result


def _has(row: Mapping[str, Any], key: str) -> bool:
    quality = row.get("quality")
    return isinstance(quality, dict) and _is_number(quality.get(key))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)


# ---- samples -------------------------------------------------------------------------------------------------------


def _spread(number: int, most: int) -> list[int]:
    """At most so many indices of `number`, evenly spread."""
    return sorted({round(i) for i in np.linspace(0, number - 1, min(number, most))}) if number else []


def _kept_sample(row: Mapping[str, Any], folder: Path) -> Sample:
    video = folder / row["video"]
    return Sample(Path(row["video"]).parent.name, _picture(video, float(row.get("duration") or 0) / 2))


def _rejected_samples(rejected: Sequence[dict], input_dir: Any, num_samples: int) -> dict[str, list[Sample]]:
    """Reason -> pictures from the middle of what was rejected, where its source is still there."""
    by_reason, samples = defaultdict(list), {}
    for row in rejected:
        by_reason[row["reason"]].append(row)
    for reason, rows in sorted(by_reason.items()):
        samples[reason] = []
        for index in _spread(len(rows), num_samples):
            row = rows[index]
            has_source = isinstance(input_dir, str) and "://" not in input_dir and isinstance(row.get("video"), str)
            middle = float(row.get("start_seconds") or 0) + _seconds_of(row) / 2
            picture = _picture(Path(input_dir, row["video"]), middle) if has_source else None
            samples[reason].append(Sample(f"{row.get('video', '')}: {row.get('detail', '')}", picture))
    return samples


def _picture(video: Path, seconds: float) -> str | None:
    """The frame at a time as a small JPEG in a data URL; None if it cannot be had."""
    try:
        frame = read_frames_at(video, [int(seconds * probe_video(video).fps)])[0]
    except (InputError, OSError, ValueError, IndexError) as error:
        logger.debug("%s: no picture (%s)", video, error)
        return None
    scale = SAMPLE_PX / max(frame.shape[:2])
    size = [max(1, round(length * scale)) for length in frame.shape[1::-1]]
    is_coded, jpeg = cv2.imencode(".jpg", cv2.resize(frame, size, interpolation=cv2.INTER_AREA)[..., ::-1])
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" if is_coded else None
