"""What somebody knows of a source, such as its language: a JSON file beside it, of the same name."""

import logging
import math

from vexpress.data.formats import NUMBER_KEYS, PATH_KEYS
from vexpress.data.metadata_files import FACT_KEYS
from vexpress.errors import first_line
from vexpress.storage import AnyPath, read_json

logger = logging.getLogger(__name__)

OWN_KEYS = {*PATH_KEYS, *NUMBER_KEYS, *FACT_KEYS, "quality", "source_start_seconds", "num_interpolated_frames"}
MAX_BYTES = 2**20


def read_facts(source: AnyPath) -> dict[str, str | int | float]:
    """Reads NAME.json beside NAME.mp4: columns for the metadata of its clips.

    Only texts and numbers are taken, and no column that preparation writes itself. Warns of a file that holds none.
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
    return {key: value for key, value in facts.items() if key not in OWN_KEYS and _is_fact(value)}


def _is_fact(value: object) -> bool:
    return isinstance(value, str | int) or isinstance(value, float) and math.isfinite(value)
