"""Metadata in files: JSON for people and other programs, Parquet for a million clips, both written row by row.

Parquet has a column per key, each of them numbers or texts; paths are as in JSON. Its rows are an index that training
trusts, see `vexpress.data.indexed`: besides the keys of `ClipRecord` it holds FACT_KEYS.
"""

import contextlib
import itertools
import json
import logging
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vexpress.data.formats import NUMBER_KEYS, PATH_KEYS
from vexpress.data.shards import MEMBER_KEYS, SHARD_KEY
from vexpress.errors import InputError, first_line
from vexpress.storage import AnyPath, local_copy, writing

logger = logging.getLogger(__name__)

FACT_KEYS = ("width", "height", "num_states", "audio_dim")
"""What training needs to know of a clip before it opens it: px of its frames, steps and channels of its audio."""
ROWS_AT_ONCE = 20_000  # of Parquet, in memory
INTEGER, NUMBER, TEXT = "integer", "number", "text"  # kinds of columns


def import_parquet():
    """pyarrow, its Parquet module.

    Raises:
        InputError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError("Parquet needs pyarrow, which is not installed: pip install pyarrow") from error
    return pyarrow.parquet


def add_columns(columns: dict[str, str], row: Mapping[str, Any]) -> None:
    """Notes the keys of a row that can be columns, and whether they are numbers; a key of both kinds is text.

    Where in a shard a clip is, only the writer of shards knows: such keys of rows are no columns.
    """
    for key, value in row.items():
        if isinstance(value, str | int | float) and is_utf8(key) and key not in (SHARD_KEY, *MEMBER_KEYS):
            kind = TEXT if isinstance(value, str) else NUMBER
            columns[key] = kind if columns.get(key, kind) == kind else TEXT


def is_utf8(text: str) -> bool:
    """Whether a text of JSON can be in Parquet: JSON may hold half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextlib.contextmanager
def writing_json(path: AnyPath) -> Iterator:
    """Gives a function that takes rows one by one; the file is a JSON list of them."""
    with writing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        before = itertools.chain(["[\n"], itertools.repeat(",\n"))

        def add(row: Mapping[str, Any]) -> None:
            file.write(next(before) + textwrap.indent(json.dumps(row, indent=1), " "))

        yield add
        file.write("[]\n" if next(before) == "[\n" else "\n]\n")


@contextlib.contextmanager
def writing_parquet(path: AnyPath, columns: Mapping[str, str]) -> Iterator:
    """Gives a function that takes rows one by one.

    Args:
        path: of the file.
        columns: from `add_columns`; other keys of rows are left out.

    Raises:
        InputError: pyarrow is not installed, or a path is no UTF-8.
    """
    parquet = import_parquet()
    import pyarrow

    types = {INTEGER: pyarrow.int64(), NUMBER: pyarrow.float64(), TEXT: pyarrow.string()}
    known = dict.fromkeys(PATH_KEYS, TEXT) | dict.fromkeys(NUMBER_KEYS, NUMBER)
    known |= dict.fromkeys(("num_frames", *FACT_KEYS), INTEGER)
    kinds = known | {key: kind for key, kind in columns.items() if key not in known}
    schema = pyarrow.schema([(key, types[kind]) for key, kind in kinds.items()])
    pending: list[Mapping[str, Any]] = []
    with writing(path) as temporary, parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:

        def write() -> None:
            values = {key: [_as_kind(row.get(key), kind, key) for row in pending] for key, kind in kinds.items()}
            writer.write_table(pyarrow.table(values, schema))
            pending.clear()

        def add(row: Mapping[str, Any]) -> None:
            pending.append(row)
            if len(pending) == ROWS_AT_ONCE:
                write()

        yield add
        write()


def _as_kind(value: Any, kind: str, key: str) -> Any:
    if not isinstance(value, str | int | float):
        return None
    if kind == TEXT:
        if is_utf8(str(value)):
            return str(value)
        if key in PATH_KEYS:
            raise InputError(f'"{key}" is {value!r}: Parquet holds UTF-8; rename it')
        logger.warning('"%s" is %s: Parquet holds UTF-8; it is left out there', key, textwrap.shorten(repr(value), 80))
        return None
    try:
        return int(value) if kind == INTEGER else float(value)
    except (ValueError, OverflowError):
        return None


def read_parquet(path: AnyPath, keys: Iterable[str] | None = None):
    """Reads a Parquet file as a pyarrow table; a column of `keys` that is not there is left out.

    Raises:
        InputError: missing, damaged, or pyarrow is not installed.
    """
    parquet = import_parquet()
    try:
        with local_copy(path) as local:
            there = parquet.read_schema(local).names
            return parquet.read_table(local, columns=None if keys is None else [key for key in keys if key in there])
    except (OSError, ValueError) as error:  # pyarrow's own errors are of these kinds
        raise InputError(f"metadata {path}: cannot be read ({first_line(error)}); is it Parquet?") from error


def is_parquet(path: AnyPath | str) -> bool:
    """Whether the name says so."""
    return Path(str(path)).suffix.lower() == ".parquet"
