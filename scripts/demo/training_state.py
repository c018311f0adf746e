"""The state of a small training in one file, so that the same command resumes it."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vexpress.files import replacing

SAVE_SECONDS = 60  # between saves of a training

Part = nn.Module | torch.optim.Optimizer


def load_state(path: Path, **parts: Part) -> dict[str, Any]:
    """Loads networks and optimizers from a file of `save_state`.

    Returns:
        The facts in it, `step` (updates that are done) among them; none but step 0 if there is no file.
    """
    if not path.is_file():
        return {"step": 0}
    state = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state.pop(name))
    return state


def save_state(path: Path, parts: dict[str, Part], **facts: Any) -> None:
    """Writes the states of networks and optimizers with some facts, `step` among them."""
    with replacing(path) as temporary:
        torch.save({name: part.state_dict() for name, part in parts.items()} | facts, temporary)
