"""Attributes as a user asks for them: numbers, curves, natural blinks -> six values for each frame."""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vexpress.data.arrays import float_item, read_file
from vexpress.errors import InputError, first_line
from vexpress.files import read_text
from vexpress.models.attributes import ATTRIBUTES
from vexpress.options import MotionOptions

NATURAL, NONE = "natural", "none"
COLUMNS = {"blink": ("left", "right"), "gaze": ("x", "y"), "brows": ("value",), "smile": ("value",)}
"""Option -> names of the values of a curve; in this order they are the columns of `ATTRIBUTES`."""
CURVE_SUFFIXES = (".json", ".csv", ".npz")
MAX_CURVE_BYTES = 2**24
MAX_POINTS = 2**20  # an hour at 240 frames per second

# Natural blinks, in seconds: as those of the drawn data (scripts.demo.drawn_people).
FIRST_BLINK_SECONDS, BETWEEN_BLINKS_SECONDS = (0.3, 3.0), (1.5, 4.5)
LID_SECONDS, CLOSED_SHARE = 0.1, 0.25  # a lid moves for this long, and stays closed for 2 * 0.25 of it
BLINK_STREAM = 6  # of random numbers


class NaturalBlinks:
    """Openness of both lids in each frame: uniformly random pauses between blinks of 0.25 s.

    A longer video begins as a shorter one of the same seed.

    Args:
        seed: 0 or more.
        fps: frames per second.
    """

    def __init__(self, seed: int, fps: float):
        self._rng, self._fps = np.random.default_rng((BLINK_STREAM, seed)), float(fps)
        self._times = [self._rng.uniform(*FIRST_BLINK_SECONDS)]

    def __call__(self, number: int) -> float:
        """Openness in a frame, 0 closed .. 1 open."""
        seconds = number / self._fps
        while self._times[-1] < seconds + 1:
            self._times.append(self._times[-1] + self._rng.uniform(*BETWEEN_BLINKS_SECONDS))
        nearest = min(abs(seconds - time) for time in self._times[-4:])  # frames are asked for in order
        return float(np.clip(nearest / LID_SECONDS - CLOSED_SHARE, 0, 1))

    def attributes(self, number: int) -> np.ndarray:
        """(6,) float32: these lids, and all else not known."""
        return np.float32([*[self(number)] * 2, *[np.nan] * (len(ATTRIBUTES) - 2)])


@dataclass(frozen=True)
class Curve:
    """Values over time.

    Attributes:
        values: (n c) float32.
        times: (n,) seconds, increasing; None is one per frame.
    """

    values: np.ndarray
    times: np.ndarray | None = None

    def at_frame(self, number: int, fps: float) -> np.ndarray:
        """(c,) float32: linear between points, and held beyond the ends."""
        if self.times is None:
            return self.values[min(number, len(self.values) - 1)]
        return np.float32([np.interp(number / fps, self.times, column) for column in self.values.T])


def asked_attributes(motion: MotionOptions) -> list[str]:
    """Names of the options about attributes that are set."""
    return [name for name in COLUMNS if getattr(motion, name) is not None]


def read_curves(motion: MotionOptions, reads_files: bool = True) -> dict[str, Curve]:
    """Reads what the options say, but for natural blinks, which are no curve.

    Args:
        motion: the options.
        reads_files: a text may be the path of a file; not so where the text comes from another machine.

    Raises:
        InputError: a text that is none of what is allowed, or a curve that cannot be used.
    """
    texts = {name: getattr(motion, name) for name in asked_attributes(motion)}
    if texts.get("blink") == NATURAL:
        del texts["blink"]
    return {name: _read_curve(name, text.strip(), reads_files) for name, text in texts.items()}


class AskedAttributes:
    """The attributes of each frame; lids blink naturally unless the options say otherwise, what they leave open is NaN.

    Args:
        motion: the options.
        fps: frames per second.
        seed: of natural blinks.
        reads_files: as of `read_curves`.

    Raises:
        InputError: as `read_curves`.
    """

    def __init__(self, motion: MotionOptions, fps: float, seed: int, reads_files: bool = True):
        self._fps, self._blinks, self._curves = float(fps), NaturalBlinks(seed, fps), read_curves(motion, reads_files)

    def __call__(self, number: int) -> np.ndarray:
        """(6,) float32 of a frame."""
        result, start = self._blinks.attributes(number), 0
        for name, columns in COLUMNS.items():
            if name in self._curves:
                result[start : start + len(columns)] = self._curves[name].at_frame(number, self._fps)
            start += len(columns)
        return result


def make_attributes(motion: MotionOptions, num_frames: int, fps: float, seed: int) -> np.ndarray:
    """(num_frames 6) float32 of a video whose length is known, see `AskedAttributes`."""
    asked = AskedAttributes(motion, fps, seed)
    return np.stack([asked(number) for number in range(num_frames)])


def _bounds(name: str) -> tuple[float, float]:
    start = list(COLUMNS).index(name)
    return list(ATTRIBUTES.values())[sum(len(columns) for columns in list(COLUMNS.values())[:start])]


def _numbers(text: str) -> list[float] | None:
    """Numbers separated by commas; None for any other text."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return None


def _read_curve(name: str, text: str, reads_files: bool) -> Curve:
    if name == "blink" and text == NONE:
        return Curve(np.ones((1, 2), np.float32))
    numbers = _numbers(text)
    if numbers is not None:
        return _checked(name, [numbers], None)
    if text.startswith(("[", "{")):
        try:
            content = json.loads(text[:MAX_CURVE_BYTES])
        except (ValueError, RecursionError) as error:
            raise InputError(f"is not valid JSON ({first_line(error)})", name, text[:60]) from error
        return _from_json(name, content)
    if not reads_files or not text.lower().endswith(CURVE_SUFFIXES):
        raise InputError(f"must be {_allowed(name, reads_files)}", name, text[:60])
    path = Path(text)
    try:
        if path.suffix.lower() == ".npz":
            if not path.is_file():
                raise FileNotFoundError(2, os.strerror(2), text)
            arrays = read_file(path, name)
            values = float_item(arrays.get("values", [])).astype(np.float64)
            times = arrays.get("times")
            return _checked(name, values, None if times is None else float_item(times))
        content = read_text(path, MAX_CURVE_BYTES).removeprefix("\ufeff")  # of Excel
        return _from_json(name, json.loads(content)) if path.suffix.lower() == ".json" else _from_csv(name, content)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", name, text) from error
    except InputError as error:
        raise error if error.field != name else InputError(f"in {text}: {error.problem}", name, error.value) from error
    except (ValueError, TypeError, RecursionError, csv.Error) as error:
        raise InputError(f"is no curve ({first_line(error)})", name, text) from error


def _allowed(name: str, reads_files: bool = True) -> str:
    low, high = _bounds(name)
    words = f"{NATURAL}, {NONE}, " if name == "blink" else ""
    number = "x,y, each" if name == "gaze" else "a number"
    files = f", or a file {', '.join(CURVE_SUFFIXES)}" if reads_files else ""
    return f'{words}{number} {low:g} to {high:g}, a curve such as {{"times": [0, 1], "values": [...]}}{files}'


def _from_json(name: str, content: Any) -> Curve:
    """An object with `values` and perhaps `times`, or a list of values, one per frame."""
    if isinstance(content, list):
        content = {"values": content}
    if not isinstance(content, Mapping) or not {"values"} <= set(content) <= {"times", "values"}:
        raise InputError("must be a list of values, or an object with `values` and perhaps `times`", name)
    return _checked(name, content["values"], content.get("times"))


def _from_csv(name: str, text: str) -> Curve:
    """A line of names, such as time,x,y, and a line of numbers per point; without a time, one per frame."""
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    header = [part.strip().lower() for part in rows[0]] if rows else []
    allowed = [list(COLUMNS[name]), ["value"]] if name == "blink" else [list(COLUMNS[name])]
    has_times = header[:1] == ["time"]
    if header[has_times:] not in allowed:
        raise InputError(f"the first line must be {','.join(COLUMNS[name])}, perhaps with time before it", name)
    if bad := next((line for line, row in enumerate(rows, 1) if len(row) != len(header)), None):
        raise InputError(f"line {bad} has {len(rows[bad - 1])} columns, the first {len(header)}", name)
    numbers = [[float(part) for part in row] for row in rows[1:]]
    times = [row[0] for row in numbers] if has_times else None
    return _checked(name, [row[has_times:] for row in numbers], times)


def _checked(name: str, values: Any, times: Sequence[float] | np.ndarray | None) -> Curve:
    """Numbers or lists of them as a curve.

    Raises:
        InputError: another shape, or values or times that cannot be.
    """
    width, (low, high) = len(COLUMNS[name]), _bounds(name)
    try:
        if not isinstance(values, np.ndarray | list) or len(values) > MAX_POINTS:
            raise ValueError
        if any(isinstance(item, bool | str) for row in values for item in (row if isinstance(row, list) else [row])):
            raise TypeError
        array = np.array(values, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"values must be up to {MAX_POINTS} numbers or rows of {width}", name) from error
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or not len(array) or array.shape[1] not in {1, width} - ({1} if name == "gaze" else set()):
        raise InputError(f"must have {width} value{'s' * (width > 1)} per point, and a point at least", name)
    if not ((array >= low) & (array <= high)).all():
        bad = array[~((array >= low) & (array <= high))][0]
        raise InputError(f"must be {low:g} to {high:g}", name, f"{bad:g}")
    array = np.broadcast_to(array, (len(array), width)).astype(np.float32)
    if times is None:
        return Curve(array)
    try:
        seconds = np.array(times, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError("times must be numbers, in seconds", name) from error
    if seconds.shape != (len(array),):
        raise InputError(f"must have a time for each of its {len(array)} points", name)
    if not np.isfinite(seconds).all() or seconds[0] < 0 or (np.diff(seconds) <= 0).any():
        raise InputError("times must be seconds that increase, from 0 on", name)
    return Curve(array, seconds)
