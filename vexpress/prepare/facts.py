"""What somebody knows of a source, such as its language: a JSON file beside it, of the same name."""

import logging
import math

from vexpress.data.formats import AUDIO_ENCODER_KEY, NUMBER_KEYS, PATH_KEYS
from vexpress.data.metadata_files import FACT_KEYS, is_utf8
from vexpress.data.shards import MEMBER_KEYS, SHARD_KEY
from vexpress.errors import first_line
from vexpress.storage import AnyPath, read_json

logger = logging.getLogger(__name__)

OWN_KEYS = {*PATH_KEYS, *NUMBER_KEYS, *FACT_KEYS, "quality", "source_start_seconds", "num_interpolated_frames"}
OWN_KEYS |= {AUDIO_ENCODER_KEY, SHARD_KEY, *MEMBER_KEYS}
"""Columns that preparation writes itself, and those of shards, by which readers know them."""
OWN_PREFIX = "quality."  # of columns of Parquet
MAX_BYTES = 2**20


def read_facts(source: AnyPath) -> dict[str, str | int | float]:
    """Reads NAME.json beside NAME.mp4: columns for the metadata of its clips.

    Only texts (UTF-8) and numbers are taken, and no column that preparation or shards have. Warns of a file that holds
    none.
    """
    path = source.with_suffix(".json")
    try:
        facts = read_json(path, MAX_BYTES)
        if not isinstance(facts, dict):
            raise ValueError("is no JSON object")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("%s: nothing is taken from it (%s)", path, first_line(error))
        return {}
    return {key: value for key, value in facts.items() if _is_free(key) and _is_fact(value)}


def with_facts(row: dict, facts: dict[str, str | int | float]) -> dict:
    """A clip's row with these facts in place of those that it has."""
    return facts | {key: value for key, value in row.items() if not _is_free(key)}


def _is_free(key: str) -> bool:
    return key not in OWN_KEYS and not key.startswith(OWN_PREFIX) and is_utf8(key)


def _is_fact(value: object) -> bool:
    if isinstance(value, str):
        return is_utf8(value)
    return isinstance(value, int) or isinstance(value, float) and math.isfinite(value)
