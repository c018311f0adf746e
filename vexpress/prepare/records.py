"""What was made of each source: a record.json in its folder of clips. The data set's files are merged from them."""

import contextlib
import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vexpress.data.formats import NEEDED_PATH_KEYS, NUMBER_KEYS
from vexpress.data.metadata_files import add_columns, writing_json, writing_parquet
from vexpress.errors import InputError
from vexpress.prepare.duplicates import PICTURE_BITS, SOUND_BITS, find_duplicates
from vexpress.storage import AnyPath, is_remote, read_json, remove, writing

logger = logging.getLogger(__name__)

RECORD_NAME = "record.json"
REMOTE_READS = 64  # at once
CLIP_FILE_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.-]*")


def write_json(path: AnyPath, content: Any) -> None:
    """Writes a JSON file."""
    with writing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


def record_paths(output_dir: AnyPath) -> Iterator[AnyPath]:
    """The records of a data set."""
    return (output_dir / "clips").glob(f"[!.]*/{RECORD_NAME}")


def read_record(path: AnyPath) -> dict | None:
    """Reads what was made of a source; None if the record is missing or damaged.

    "source" is its path in the input folder, "num_bytes" and "sha256" its size and hash, "failed" whether it ended in
    an unexpected error, "clips" and "rejected" are the rows of `prepare_source`.
    """
    try:
        record = read_json(path)
    except (OSError, ValueError):
        return None
    return record if _is_record(record) else None


def _is_record(record: Any) -> bool:
    if not isinstance(record, dict):
        return False
    clips, rejected = record.get("clips"), record.get("rejected")
    return (
        isinstance(record.get("source"), str)
        and isinstance(record.get("failed"), bool)
        and isinstance(clips, list)
        and all(map(_is_clip, clips))
        and isinstance(rejected, list)
        and all(isinstance(row, dict) and isinstance(row.get("reason"), str) for row in rejected)
    )


def _is_clip(row: Any) -> bool:
    if not isinstance(row, dict):
        return False
    if not isinstance(row.get("quality", {}), dict):
        return False
    names, numbers = [row.get(key) for key in NEEDED_PATH_KEYS], [row.get(key) for key in NUMBER_KEYS]
    return all(isinstance(name, str) and CLIP_FILE_NAME.fullmatch(name) for name in names) and all(
        isinstance(number, int | float) and not isinstance(number, bool) and 0 < number < 1e9 for number in numbers
    )


def clip_files(record: dict, folder: AnyPath) -> list[AnyPath]:
    """The files of a record's clips."""
    return [folder / row[key] for row in record["clips"] for key in NEEDED_PATH_KEYS]


def log_withdrawn(output_dir: AnyPath, folders: Container[str]) -> None:
    """Says how many clips `merge_records` leaves out, since their sources are gone."""
    gone = [read_record(path) for path in record_paths(output_dir) if path.parent.name not in folders]
    if gone:
        num_clips = sum(len(record["clips"]) for record in gone if record)
        text = "%d sources are no longer in the input folder: their %d clips are left out; the files stay in %s"
        logger.warning(text, len(gone), num_clips, output_dir / "clips")


def merge_records(
    output_dir: AnyPath, max_duplicate_difference: float = -1, folders: Container[str] | None = None
) -> tuple[int, Counter]:
    """Writes metadata.json, metadata.parquet and rejected.jsonl from the records in `folders` (None: in all); damaged
    ones are left out. One record is in memory at a time, and 100 bytes of each clip.

    Of duplicates, the first in the order of sources is kept, whatever was prepared first.

    Each process of a launch calls this when its share is done. A process that read the records early may be the last
    to write: each looks again after writing, so that the last word holds all records.

    Returns:
        Number of clips, and number of rejections by reason.
    """
    merged = None
    while (survey := _survey(output_dir, folders)) != merged:
        merged = survey
        _, columns, hashes = merged
        duplicates = _find_duplicates(hashes, max_duplicate_difference)
        num_clips, reasons, damaged = _write(output_dir, folders, columns, duplicates)
    for path in damaged:
        logger.warning("%s: is damaged; its clips are left out", path)
    return num_clips, reasons


_Key = tuple[str, str, str]  # of a clip: its source, the name of its folder, its video


def _survey(
    output_dir: AnyPath, folders: Container[str] | None
) -> tuple[str, dict[str, str], dict[_Key, tuple[str, str]]]:
    """A digest of all records, the columns of their clips, and the hashes of those that have some."""
    digest, columns, hashes = hashlib.sha256(), {}, {}  # key -> number or text
    for path, record in _read_all(output_dir, folders):
        digest.update(repr((str(path), record)).encode())
        for row in record["clips"] if record else ():
            add_columns(columns, _flat(row))
            if both := _hashes(row):
                hashes[record["source"], path.parent.name, row["video"]] = both
    return digest.hexdigest(), columns, hashes


def _write(
    output_dir: AnyPath, folders: Container[str] | None, columns: dict[str, str], duplicates: dict[_Key, dict]
) -> tuple[int, Counter, list[AnyPath]]:
    num_clips, reasons, damaged = 0, Counter(), []
    with contextlib.ExitStack() as files:
        writers = [files.enter_context(writing_json(output_dir / "metadata.json"))]
        try:
            add_flat = files.enter_context(writing_parquet(output_dir / "metadata.parquet", columns))
            writers.append(lambda row: add_flat(_flat(row)))
        except InputError as error:
            logger.warning("metadata.parquet is not written: %s", error)
            remove(output_dir / "metadata.parquet")  # of an earlier run
        temporary = files.enter_context(writing(output_dir / "rejected.jsonl"))
        rejected = files.enter_context(open(temporary, "w", encoding="utf-8"))
        for path, record in _read_all(output_dir, folders):
            if record is None:
                damaged.append(path)
                continue
            left_out = list(record["rejected"])
            for row in record["clips"]:
                why = duplicates.get((record["source"], path.parent.name, row["video"]))
                if why is not None:
                    left_out.append(_rejected_clip(row, why))
                    continue
                for add in writers:
                    add(_metadata_row(row, path.parent.name))
                num_clips += 1
            for row in left_out:
                rejected.write(json.dumps({"video": record["source"]} | row) + "\n")
            reasons.update(row["reason"] for row in left_out)
    return num_clips, reasons, damaged


def _find_duplicates(hashes: dict[_Key, tuple[str, str]], max_difference: float) -> dict[_Key, dict]:
    """Clip that is there already -> reason, detail and how much its sound differs."""
    if max_difference < 0 or not hashes:
        return {}
    keys, found = sorted(hashes), {}
    for duplicate in find_duplicates(*zip(*(hashes[key] for key in keys)), max_difference):
        source, _, video = keys[duplicate.original]
        differs = f"{duplicate.difference:.3g} of the bits of their sounds differ"
        limit = f"`max_duplicate_difference` is {max_difference:g}"
        found[keys[duplicate.index]] = {
            "reason": "mirrored" if duplicate.is_mirrored else "duplicate",
            "detail": f"as {source}, clip {_number(video)}; {differs}, {limit}",
            "sound_difference": round(duplicate.difference, 4),
        }
    return found


def _rejected_clip(row: dict, why: dict) -> dict:
    """The row among the rejected ones of a clip that was made."""
    start = row.get("source_start_seconds", 0.0)
    about = {"clip": _number(row["video"]), "reason": why["reason"], "detail": why["detail"]}
    quality = {"quality": row["quality"] | {"sound_difference": why["sound_difference"]}}
    return about | quality | {"start_seconds": start, "end_seconds": start + row["duration"]}


def _number(video: str) -> int | None:
    stem = video.partition(".")[0]
    return int(stem) if stem.isdecimal() else None


def _hashes(row: dict) -> tuple[str, str] | None:
    """The hashes of a clip's sound and picture; None for a clip without."""
    quality, lengths = row.get("quality", {}), {"sound_hash": SOUND_BITS // 4, "picture_hash": PICTURE_BITS // 4}
    is_whole = all(re.fullmatch(f"[0-9a-f]{{{length}}}", str(quality.get(key))) for key, length in lengths.items())
    return tuple(quality[key] for key in lengths) if is_whole else None


def _flat(row: dict) -> dict:
    """The row with a column for each number of its quality."""
    return row | {f"quality.{key}": value for key, value in row.get("quality", {}).items()}


def _read_all(output_dir: AnyPath, folders: Container[str] | None) -> Iterator[tuple[AnyPath, dict | None]]:
    """The records in `folders` by name; those of a store are read some at a time."""
    paths = [path for path in record_paths(output_dir) if folders is None or path.parent.name in folders]
    paths.sort(key=lambda path: os.fsencode(path.parent.name))
    if not is_remote(output_dir):
        yield from ((path, read_record(path)) for path in paths)
        return
    with ThreadPoolExecutor(REMOTE_READS) as pool:
        for start in range(0, len(paths), REMOTE_READS):
            batch = paths[start : start + REMOTE_READS]
            yield from zip(batch, pool.map(read_record, batch))


def _metadata_row(row: dict, folder: str) -> dict:
    """A clip's row: paths relative to the metadata, and every number and text that preparation kept."""
    paths = {key: f"clips/{folder}/{row[key]}" for key in NEEDED_PATH_KEYS}
    rest = {key: value for key, value in row.items() if isinstance(value, str | int | float) and key not in paths}
    quality = {"quality": row["quality"]} if "quality" in row else {}
    return paths | {key: row[key] for key in NUMBER_KEYS} | rest | quality
