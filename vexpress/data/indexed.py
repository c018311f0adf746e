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

from vexpress.data.formats import NEEDED_PATH_KEYS, NUMBER_KEYS, PATH_KEYS, ClipRecord, parse_row
from vexpress.data.metadata_files import FACT_KEYS, read_parquet
from vexpress.data.shards import MEMBER_KEYS, SHARD_KEY, copy_members
from vexpress.errors import InputError, first_line
from vexpress.storage import child, is_remote, local_copy, to_path

MUST_HAVE = (*NEEDED_PATH_KEYS, "num_frames", "audio_dim")


class IndexedClips:
    """The clips of a Parquet file that are long enough.

    Args:
        path: of the file, or its URL; paths in it are relative to it.
        num_frames: that a clip must have.

    Attributes:
        audio_dims: width of hidden states -> number of the first row that has it, from 1.
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
        dims, first = np.unique(self._numbers("audio_dim")[self._rows], return_index=True)
        self.audio_dims = {int(dim): int(self._rows[index]) + 1 for dim, index in zip(dims, first)}

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

    def _row(self, index: int) -> dict[str, Any]:
        [row] = self._table.slice(int(self._rows[index]), 1).to_pylist()
        return row

    def _numbers(self, key: str) -> np.ndarray:
        import pyarrow

        try:
            return self._table[key].cast(pyarrow.int64()).fill_null(0).to_numpy()
        except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
            raise InputError(f"metadata {self.path}: {key} holds other things than whole numbers") from error
