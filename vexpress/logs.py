"""Log lines: where they go, and which libraries are kept quiet."""

import logging
import sys


def set_up_logging(level: int = logging.INFO) -> None:
    """Sends log lines to stderr, and quiets the libraries that talk a lot."""
    logging.basicConfig(level=level, stream=sys.stderr, format="%(levelname)s: %(message)s", force=True)
    for name in ("libav", "accelerate", "diffusers", "transformers", "httpx", "httpx2", "numba", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
