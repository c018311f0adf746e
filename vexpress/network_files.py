"""Files of the networks that measure: which they are, whether they are trusted, and weights that fit or are refused."""

import hashlib
import io
import json
import logging
from collections.abc import Collection
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vexpress.errors import InputError, first_line
from vexpress.files import hash_file
from vexpress.weights import read_state_dict
from vexpress.weights.state_dicts import check_finite

logger = logging.getLogger(__name__)

EXTRA_FILE = "evaluation.json"
HASH_LETTERS = 12
MAX_SCRIPT_BYTES = 2**32


@dataclass(frozen=True)
class NetworkFacts:
    """What a report says about the network behind a figure.

    Attributes:
        metric: what it is for.
        file: name of the file or folder.
        sha256: the first letters of its hash; of a folder, that of its files' hashes.
        kind: what the file says it is, or which released interface is assumed.
        resize: how pictures are brought to its input.
    """

    metric: str
    file: str
    sha256: str
    kind: str
    resize: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def hash_prefix(path: str | PathLike) -> str:
    """Computes the first letters of the SHA-256 of a file, or of the hashes of all ONNX files of a folder."""
    path = Path(path)
    if path.is_dir():
        parts = [hash_prefix(file) for file in sorted(path.glob("*.onnx"))]
        return hashlib.sha256("".join(parts).encode()).hexdigest()[:HASH_LETTERS]
    return hash_file(path)[:HASH_LETTERS]


def is_script(path: Path) -> bool:
    """Whether a file of features is taken for TorchScript, which is a program: loading it can write any file."""
    return path.suffix.lower() != ".safetensors"


def load_script(
    path: Path, field: str, device: torch.device | str, trusted: Collection[str] = ()
) -> tuple[torch.jit.ScriptModule, dict[str, Any]]:
    """Loads TorchScript, with a warning unless its SHA-256 is among the `trusted` ones.

    Returns:
        The network, and what its extra file `evaluation.json` says.

    Raises:
        InputError: missing, too large, or no TorchScript; names `field`.
    """
    if not path.is_file():
        raise InputError("no such file; give a network of features, see docs/evaluation.md", field, path)
    if path.stat().st_size > MAX_SCRIPT_BYTES:
        raise InputError(f"is larger than {MAX_SCRIPT_BYTES >> 30} GiB", field, path)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() not in trusted:
        logger.warning(
            "`%s` %s: is TorchScript, a program that can write any of your files; use only what you trust", field, path
        )
    extra = {EXTRA_FILE: ""}
    try:
        network = torch.jit.load(io.BytesIO(content), map_location=device, _extra_files=extra).eval()
        facts = json.loads(extra[EXTRA_FILE] or "{}")
    except Exception as error:  # a damaged or hostile file makes it raise anything
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        raise InputError(f"is no TorchScript network, or damaged ({first_line(error)})", field, path) from error
    if not isinstance(facts, dict):
        raise InputError(f"its {EXTRA_FILE} is no JSON object", field, path)
    return network, facts


def give_weights(network: nn.Module, path: Path, field: str, device: torch.device | str) -> nn.Module:
    """Gives a network that was built on the meta device its weights; memory is bounded by the file's size.

    Returns:
        `network` in float32 and evaluation mode, on the device.

    Raises:
        InputError: the file is missing or damaged, does not fit, or holds values that are not finite.
    """
    try:
        weights = read_state_dict(path)
        for name, tensor in weights.items():
            check_finite(name, tensor, f"weights file {path}")
        weights = {name: t.float() if t.is_floating_point() else t for name, t in weights.items()}
        network.load_state_dict(weights, assign=True)
    except (InputError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        problem = f"does not hold the weights of {type(network).__name__} of these sizes ({reason})"
        raise InputError(problem, field, path) from error
    return network.to(device).eval()
