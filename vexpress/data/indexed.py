"""Clips of a Parquet index: a million of them in some 220 MB, on this machine, in an object store or in tar shards.

The index is trusted: no clip's files are opened before a sample needs them. What is not on this machine is copied
here for the sample and removed after it; of a shard, only the clip's own bytes are read.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vexpress.audio_encoders import EncoderRecord
from vexpress.data.formats import AUDIO_ENCODER_KEY, NEEDED_PATH_KEYS, NUMBER_KEYS, PATH_KEYS, ClipRecord, parse_row
from vexpress.data.metadata_files import FACT_KEYS, read_parquet
from vexpress.data.shards import MEMBER_KEYS, SHARD_KEY, copy_members
from vexpress.errors import InputError, first_line
from vexpress.storage import child, is_remote, local_copy, to_path

MUST_HAVE = (*NEEDED_PATH_KEYS, "num_frames", "audio_dim")
NUM_LISTED = 4096  # rows as Python objects at a time, which are ten times larger


class IndexedClips:
    """The clips of a Parquet file that are long enough.

    Args:
        path: of the file, or its URL; paths in it are relative to it.
        num_frames: that a clip must have.

    Attributes:
        audio_kinds: width of hidden states, and who made them -> number of the first row of these, from 1.
        rejected: number of clips that are too short.

    Raises:
        InputError: the file is missing or damaged, or has no column for what samples need.
    """

    def __init__(self, path: str | os.PathLike, num_frames: int):
        self.path = to_path(path)
        self._table = read_parquet(self.path, (*PATH_KEYS, *NUMBER_KEYS, *FACT_KEYS, SHARD_KEY, *MEMBER_KEYS))
        names = self._table.schema.names
        if missing := [key for key in MUST_HAVE if key not in names]:
            raise InputError(f"metadata {path}: has no column {', '.join(missing)}; make it with `vexpress index`")
        self.is_sharded = SHARD_KEY in names
        is_long = self._numbers("num_frames") >= num_frames
        self._rows = np.flatnonzero(is_long).astype(np.int32)
        self.rejected = len(is_long) - len(self._rows)
        texts, which = self._values(AUDIO_ENCODER_KEY)
        kinds = np.stack([self._numbers("audio_dim")[self._rows], which], axis=1)
        kinds, first = np.unique(kinds, axis=0, return_index=True)
        self.audio_kinds = {
            (int(dim), self._encoder(texts[text] if text >= 0 else None, row)): row
            for (dim, text), row in zip(kinds, (self._rows[first] + 1).tolist())
        }

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def is_here(self) -> bool:
        """Whether the clips are files of this machine."""
        return not self.is_sharded and not is_remote(self.path)

    def name(self, index: int) -> str:
        """Path of a clip's video; in a shard, that of the shard and its name there."""
        row = self._row(index)
        return str(self.path.parent / os.path.join(*filter(None, [row.get(SHARD_KEY), row["video"]])))

    @contextlib.contextmanager
    def open(self, index: int) -> Iterator[ClipRecord]:
        """Gives a clip's row, whose files are here until the end.

        Raises:
            InputError: a malformed row, or files that are not there.
        """
        row, where = self._row(index), f"metadata {self.path} row {self._rows[index] + 1}"
        try:
            with contextlib.ExitStack() as copies:
                if self.is_sharded:
                    folder = Path(copies.enter_context(tempfile.TemporaryDirectory(prefix="vexpress-")))
                    row |= copy_members(self.path.parent, row, folder, where)
                    yield parse_row(row, folder, where)
                elif is_remote(self.path):
                    for key in PATH_KEYS:
                        if row.get(key) is not None:
                            remote = child(self.path.parent, row[key])
                            row[key] = str(copies.enter_context(local_copy(remote)))
                    yield parse_row(row, Path(), where)
                else:
                    yield parse_row(row, self.path.parent, where)
        except OSError as error:
            raise InputError(f"{where}: {self.name(index)} cannot be read ({first_line(error)})") from error

    def lengths(self) -> Iterator[tuple[str, int]]:
        """Path of the video and number of frames, as the index says, of each clip."""
        videos, lengths = self._table["video"], self._numbers("num_frames")
        for start in range(0, len(self._rows), NUM_LISTED):
            rows = self._rows[start : start + NUM_LISTED]
            yield from zip(videos.take(rows).to_pylist(), lengths[rows].tolist())

    def facts(self, name: str) -> Iterator[str | int | float]:
        """The values of another column, of each clip.

        Raises:
            InputError: there is no such column, or not in each row.
        """
        values, which = self._values(name)
        if (which < 0).any():
            row = self._rows[(which < 0).argmax()] + 1
            raise InputError(f'metadata {self.path} row {row}: has no "{name}", a text or a number')
        return (values[value] for value in which)

    def _values(self, name: str) -> tuple[list, np.ndarray]:
        """Different values of a column that is not held, and which of them (n,) each clip has; -1 is none."""
        table = read_parquet(self.path, [name])
        if name not in table.schema.names:
            return [], np.full(len(self._rows), -1)
        try:
            column = table[name].combine_chunks().dictionary_encode()
        except NotImplementedError as error:  # pyarrow's is of this kind
            raise InputError(f"metadata {self.path}: {name} holds other things than texts and numbers") from error
        return column.dictionary.to_pylist(), column.indices.fill_null(-1).to_numpy()[self._rows]

    def _encoder(self, text: str | None, row: int) -> EncoderRecord:
        try:
            return EncoderRecord() if text is None else EncoderRecord.from_text(text)
        except ValueError as error:
            where = f"metadata {self.path} row {row}"
            raise InputError(
                f"{where}: {AUDIO_ENCODER_KEY} {first_line(error)}; make it with `vexpress index`"
            ) from error

    def _row(self, index: int) -> dict[str, Any]:
        [row] = self._table.slice(int(self._rows[index]), 1).to_pylist()
        return row

    def _numbers(self, key: str) -> np.ndarray:
        import pyarrow

        try:
            return self._table[key].cast(pyarrow.int64()).fill_null(0).to_numpy()
        except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
            raise InputError(f"metadata {self.path}: {key} holds other things than whole numbers") from error
