"""What files of weights and their configurations may ask for: bounded before anything is built or unpacked."""

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vexpress.errors import InputError
from vexpress.media.archives import check_unpacked_size

LAYERS = (
    *("layers_per_block", "transformer_layers_per_block", "reverse_transformer_layers_per_block", "depth"),  # UNets
    *("num_blocks", "num_audio_blocks"),  # head motion
    *("num_hidden_layers", "num_feat_extract_layers", "encoder_layers", "decoder_layers"),  # audio encoders
    *("encoder_layers_per_block", "decoder_layers_per_block", "num_encoder_blocks", "num_decoder_blocks"),  # VAEs
)
MAX_COUNTS = {**dict.fromkeys(LAYERS, 100), "motion_max_seq_length": 10_000, "num_labels": 10_000}
"""What would take hours to build if it were a million."""
MAX_ENTRIES = 1000  # of a list: some have an entry per layer
SPARE_BYTES = 2**26


def check_counts(config: Mapping[str, Any]) -> None:
    """Raises an InputError of the key if a configuration asks for more layers than any network has."""
    for key, value in config.items():
        numbers = [number for number in _flatten(value) if isinstance(number, int | float)]
        if key in MAX_COUNTS and any(number > MAX_COUNTS[key] for number in numbers):
            raise InputError(f"must be at most {MAX_COUNTS[key]}", key, textwrap.shorten(str(value), 80))
        if isinstance(value, list | tuple) and len(value) > MAX_ENTRIES:
            raise InputError(f"has {len(value)} entries; allowed are {MAX_ENTRIES}", key)


def _flatten(value: Any) -> Iterator[Any]:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list | tuple):
            waiting.extend(value)
        else:
            yield value


def check_archive(path: Path) -> None:
    """Raises an InputError if a PyTorch file is an archive that is packed: `torch.save` stores all as it is.

    Raises:
        zipfile.BadZipFile: the archive is damaged.
    """
    check_unpacked_size(path, "", path.stat().st_size + SPARE_BYTES)
