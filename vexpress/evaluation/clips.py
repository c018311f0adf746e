"""Which videos are compared with which: pairs of a generated and a real one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

from vexpress.data.formats import MAX_METADATA_BYTES, load_metadata
from vexpress.errors import InputError
from vexpress.files import read_json
from vexpress.media.video import constant_rate, probe_video, read_frames
from vexpress.prepare.extract import VIDEO_SUFFIXES

NUM_NAMED = 5  # in a message


@dataclass(frozen=True)
class Pair:
    """A generated video and what it should have been.

    Attributes:
        name: of both, without suffix.
        generated: may not exist yet.
        real: the real video.
        sound: what it is driven by; often the real video.
        face_info: the face in each frame of the real video, where known.
        labels: what the mouth does (`mouth` (f 2) in an .npz), where known.
        facts: the other columns of the row, such as language.
    """

    name: str
    generated: Path
    real: Path
    sound: Path
    face_info: Path | None = None
    labels: Path | None = None
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """Something that could not be measured, or only in part; the reason is one line."""

    clip: str
    what: str
    reason: str


def pair_folders(generated_dir: Path, real_dir: Path) -> tuple[list[Pair], list[Problem]]:
    """Matches the videos of two folders by name without suffix.

    Raises:
        InputError: no such folder, or nothing in them matches.
    """
    generated, real = _videos(generated_dir, "generated_dir"), _videos(real_dir, "real_dir")
    pairs = [Pair(name, generated[name], real[name], real[name]) for name in sorted(generated.keys() & real.keys())]
    if not pairs:
        raise InputError(
            f"`generated_dir` {generated_dir} ({_named(generated)}) and `real_dir` {real_dir} ({_named(real)}): no "
            "video of one has the name of one of the other; name them alike"
        )
    problems = [Problem(name, "all", f"has no real video in {real_dir}") for name in sorted(generated.keys() - real)]
    problems += [
        Problem(name, "all", f"has no generated video in {generated_dir}") for name in sorted(real.keys() - generated)
    ]
    return pairs, problems


def videos_in(folder: Path) -> list[Path]:
    """The videos of a folder, sorted; hidden ones are left out."""
    return [path for path in sorted(folder.iterdir()) if path.suffix.lower() in VIDEO_SUFFIXES and path.name[0] != "."]


def _videos(folder: Path, field: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError("no such folder", field, folder)
    paths = videos_in(folder)
    found = {path.stem: path for path in paths}
    if not found:
        raise InputError(f"holds no video ({', '.join(VIDEO_SUFFIXES)})", field, folder)
    if len(found) < len(paths):
        raise InputError("holds videos that differ in suffix alone; leave one of each", field, folder)
    return found


def _named(found: dict[str, Path]) -> str:
    names = list(found)
    return ", ".join(names[:NUM_NAMED]) + ", ..." * (len(names) > NUM_NAMED)


def pair_metadata(meta_path: Path, generated_dir: Path) -> list[Pair]:
    """Matches the rows of a dataset's metadata with videos (to be) generated, NAME.mp4.

    Raises:
        InputError: no such file, no rows, or two videos of one name.
    """
    records = load_metadata(meta_path)
    if not records:
        raise InputError("holds no clips", "meta_path", meta_path)
    pairs: dict[str, Pair] = {}
    for record, row in zip(records, read_json(meta_path, MAX_METADATA_BYTES)):
        name = record.video.stem
        if name in pairs:
            raise InputError(f"two rows have a video named {name}; names must differ", "meta_path", meta_path)
        labels = row.get("labels")
        facts = {key: str(value) for key, value in row.items() if isinstance(value, str | int | float)}
        pairs[name] = Pair(
            name=name,
            generated=generated_dir / f"{name}.mp4",
            real=record.video,
            sound=record.audio or record.video,
            face_info=record.face_info if record.face_info.is_file() else None,
            labels=meta_path.parent / labels if isinstance(labels, str) else None,
            facts=facts,
        )
    return list(pairs.values())


def check_groups(pairs: Sequence[Pair], columns: Sequence[str]) -> None:
    """Raises an InputError for a column of `group_by` that no row has."""
    known = sorted({key for pair in pairs for key in pair.facts})
    for column in columns:
        if column not in known:
            raise InputError(f"no row has this column; there are {', '.join(known) or 'none'}", "group_by", column)


@dataclass(frozen=True)
class Clip:
    """A video that was read.

    Attributes:
        frames: (f H W 3) uint8 RGB at `fps`.
        fps: frames per second.
    """

    frames: np.ndarray
    fps: Fraction

    def at_rate(self, fps: int) -> np.ndarray:
        """(n) indices of the frames that a player of another rate shows."""
        times = [(i / self.fps, np.asarray(i)) for i in range(len(self.frames))]
        return np.array([int(i) for i in constant_rate(times, fps)])


def read_clip(path: Path, field: str, max_seconds: float, fps: Fraction | None = None) -> Clip:
    """Reads a video at a constant rate.

    Args:
        path: to read.
        field: for messages.
        max_seconds: the rest is left out.
        fps: of the result; None takes the video's own.

    Raises:
        InputError: it cannot be read.
    """
    fps = fps or probe_video(path, field).fps
    limit = max(1, round(max_seconds * fps))
    frames = []
    for frame in constant_rate(read_frames(path, field), fps):
        frames.append(frame)
        if len(frames) == limit:
            break
    return Clip(np.stack(frames), fps)
