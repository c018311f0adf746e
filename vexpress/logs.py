"""Log lines: how they look, where they go, and which libraries are kept quiet."""

import logging
import os
import sys
from collections.abc import Callable

from vexpress.errors import FIELD_NAME

TALKATIVE = ("libav", "accelerate", "diffusers", "transformers", "httpx", "httpx2", "numba", "urllib3")


class _Formatter(logging.Formatter):
    """Gives fields, which messages name in backticks, the names that a door's users know."""

    def __init__(self, name_of: Callable[[str], str]):
        super().__init__("%(levelname)s: %(message)s")
        self.name_of = name_of

    def format(self, record: logging.LogRecord) -> str:
        return FIELD_NAME.sub(lambda match: self.name_of(match[1]), super().format(record))


def set_up_logging(level: int = logging.INFO, name_of: Callable[[str], str] = str) -> None:
    """Sends log lines to stderr, and quiets the libraries that talk a lot.

    Args:
        level: least that is shown.
        name_of: a field's name -> what users call it, such as a flag.
    """
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):  # they set their own level when they are imported
        os.environ.setdefault(name, "error")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(name_of))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
