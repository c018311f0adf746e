"""The head-motion network of a model folder: an optional part, which the release lacks."""

import json
from pathlib import Path

import safetensors.torch
import torch

from vexpress.errors import InputError
from vexpress.files import replacing
from vexpress.model_folder import LAYOUT, read_config
from vexpress.models.head_motion import HeadMotion
from vexpress.weights.bounds import check_counts
from vexpress.weights.state_dicts import load_weights

KEPT_EXACT = ("factors", "deviations")  # what is smooth stays so only with all digits


def load_head_motion(path: Path, device: torch.device | str = "cpu") -> HeadMotion:
    """Loads the network from `path`, with its configuration beside it (.json); in fp32, since it is small.

    Raises:
        InputError: a file is missing, damaged or does not fit.
    """
    config = read_config(path.with_suffix(".json"))
    try:
        check_counts(config)
        with torch.device("meta"):
            network = HeadMotion(**config)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        where = path.with_suffix(".json")
        raise InputError(f"configuration {where} of head_motion: makes no such network ({error})") from error
    return load_weights(network, [path], torch.float32, device)


def save_head_motion(folder: Path, network: HeadMotion) -> Path:
    """Writes the network into a folder of the released layout, in half precision, with its configuration.

    Returns:
        The weights file.
    """
    path = Path(folder) / f"{LAYOUT['head_motion_path']}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().cpu().to(torch.float32 if name in KEPT_EXACT else torch.float16).contiguous()
        for name, tensor in network.state_dict().items()
    }
    config = {key: value for key, value in network.config.items() if not key.startswith("_")}
    with replacing(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(config, indent=1) + "\n")
    with replacing(path) as temporary:
        safetensors.torch.save_file(weights, temporary, metadata={"format": "pt"})
    return path
