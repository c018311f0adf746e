"""What was made of each source: a record.json in its folder of clips. The data set's files are merged from them."""

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vexpress.data.formats import NEEDED_PATH_KEYS, NUMBER_KEYS, ClipRecord, save_metadata
from vexpress.files import read_json, replacing

logger = logging.getLogger(__name__)

RECORD_NAME = "record.json"
CLIP_FILE_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.-]*")


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


def record_paths(output_dir: Path) -> Iterator[Path]:
    """The records of a data set."""
    return (output_dir / "clips").glob(f"[!.]*/{RECORD_NAME}")


def read_record(path: Path) -> dict | None:
    """Reads what was made of a source; None if the record is missing or damaged.

    "source" is its path in the input folder, "num_bytes" its size, "failed" whether it ended in an unexpected error,
    "clips" and "rejected" are the rows of `prepare_source`.
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
    names, numbers = [row.get(key) for key in NEEDED_PATH_KEYS], [row.get(key) for key in NUMBER_KEYS]
    return all(isinstance(name, str) and CLIP_FILE_NAME.fullmatch(name) for name in names) and all(
        isinstance(number, int | float) and not isinstance(number, bool) and 0 < number < 1e9 for number in numbers
    )


def clip_files(record: dict, folder: Path) -> list[Path]:
    """The files of a record's clips."""
    return [folder / row[key] for row in record["clips"] for key in NEEDED_PATH_KEYS]


def merge_records(output_dir: Path) -> tuple[int, Counter]:
    """Writes metadata.json and rejected.jsonl from the records of all sources; damaged records are left out.

    Each process of a launch calls this when its share is done. A process that read the records early may be the last
    to write: each looks again after writing, so that the last word holds all records.

    Returns:
        Number of clips, and number of rejections by reason.
    """
    merged = None
    while (records := {path: read_record(path) for path in sorted(record_paths(output_dir))}) != merged:
        merged = records
        whole = {path: record for path, record in records.items() if record is not None}
        clips = [_clip_record(row, path.parent) for path, record in whole.items() for row in record["clips"]]
        rejected = [{"video": record["source"]} | row for record in whole.values() for row in record["rejected"]]
        save_metadata(output_dir / "metadata.json", clips)
        lines = "".join(json.dumps(row) + "\n" for row in rejected)
        with replacing(output_dir / "rejected.jsonl") as temporary:
            temporary.write_text(lines, encoding="utf-8")
    for path in records.keys() - whole.keys():
        logger.warning("%s: is damaged, and its source is gone; its clips are left out", path)
    return len(clips), Counter(row["reason"] for row in rejected)


def _clip_record(row: dict, folder: Path) -> ClipRecord:
    paths = {key: folder / row[key] for key in NEEDED_PATH_KEYS}
    return ClipRecord(**paths, **{key: row[key] for key in NUMBER_KEYS})
