"""From JSON metadata to an index that training trusts: facts of each clip are found out once, and kept."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vexpress.data.formats import (
    AUDIO_ENCODER_KEY,
    MAX_NUMBER,
    NUMBER_KEYS,
    ClipRecord,
    audio_length_problem,
    load_audio_states,
    load_face_info,
    load_rows,
    parse_row,
)
from vexpress.data.metadata_files import FACT_KEYS, INTEGER, TEXT, add_columns, writing_parquet
from vexpress.data.shards import MEMBER_KEYS, SHARD_KEY, check_files, write_shards
from vexpress.errors import InputError
from vexpress.media.random_access import count_frames
from vexpress.media.video import probe_video
from vexpress.storage import AnyPath

logger = logging.getLogger(__name__)


def write_index(meta_path: Path, index_path: AnyPath, shard_bytes: int | None) -> tuple[int, int]:
    """Writes the index of a metadata file, and the shards of its clips if asked for.

    Rows that hold all of FACT_KEYS, as those of `vexpress prepare` do, are believed; else the files are opened. What
    goes into a shard, and so to others, is always opened: metadata may name any file of this machine.

    Args:
        meta_path: JSON.
        index_path: Parquet file to write, beside the metadata or the shards.
        shard_bytes: size of a shard; None makes none.

    Returns:
        Number of clips in the index, and of those that cannot serve, which are logged.

    Raises:
        InputError: the metadata is malformed.
    """
    rows = load_rows(meta_path)
    columns = {} if shard_bytes is None else {SHARD_KEY: TEXT} | dict.fromkeys(MEMBER_KEYS, INTEGER)
    columns[AUDIO_ENCODER_KEY] = TEXT
    for number, row in enumerate(rows, 1):
        parse_row(row, meta_path.parent, f"metadata {meta_path} row {number} of {len(rows)}")
        add_columns(columns, row)
    clips = _with_facts(rows, meta_path, believes=shard_bytes is None)
    indexed: Iterator[dict[str, Any]] = (row for row, _ in clips)
    if shard_bytes is not None:
        indexed = write_shards(clips, index_path.parent, shard_bytes)
    num_clips = 0
    with writing_parquet(index_path, columns) as add:
        for row in indexed:
            add(row)
            num_clips += 1
    return num_clips, len(rows) - num_clips


def _with_facts(rows: list[dict], meta_path: Path, believes: bool) -> Iterator[tuple[dict[str, Any], ClipRecord]]:
    for row in rows:
        record = parse_row(row, meta_path.parent, f"metadata {meta_path}")
        try:
            is_known = all(_is_count(row.get(key)) for key in FACT_KEYS)
            is_known = is_known and all(row.get(key) is not None for key in NUMBER_KEYS)
            if not believes:
                check_files(record)
            if not (is_known and believes):
                row = row | find_facts(record)
        except InputError as error:
            logger.error("%s: %s", record.video, error)
            continue
        yield row, record


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < MAX_NUMBER


def find_facts(record: ClipRecord) -> dict[str, int | float | str]:
    """Opens a clip's files: NUMBER_KEYS, FACT_KEYS and AUDIO_ENCODER_KEY.

    Raises:
        InputError: the clip cannot serve for training.
    """
    info = probe_video(record.video, "video")
    num_frames = record.num_frames or count_frames(record.video)
    face_info, (embeds, encoder) = load_face_info(record.face_info), load_audio_states(record.audio_embeds)
    if face_info.num_frames != num_frames:
        raise InputError(f"face_info {record.face_info} has {face_info.num_frames} frames, the video {num_frames}")
    if not all(np.isfinite(values).all() for values in (face_info.kps, face_info.landmark_2d_106, embeds.numpy())):
        raise InputError(f"face_info {record.face_info} or audio_embeds {record.audio_embeds}: not all is finite")
    duration = record.duration or float(num_frames / info.fps)
    if problem := audio_length_problem(len(embeds), duration, encoder.states_hz):
        raise InputError(problem)
    numbers = {"duration": duration, "fps": float(info.fps), "num_frames": num_frames}
    facts = {"width": info.width, "height": info.height, "num_states": len(embeds), "audio_dim": embeds.shape[1]}
    return numbers | facts | {AUDIO_ENCODER_KEY: encoder.to_text()}
