"""What a run leaves to read: a header, a line per few steps, and a picture of the loss."""

import hashlib
import json
import logging
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from vexpress.files import replacing

logger = logging.getLogger(__name__)

HASH_BLOCK_BYTES = 2**24


class RunLog:
    """Numbers of a run in `log.jsonl`, a JSON object per line, and `loss.png`.

    Args:
        folder: of the run.
        start_step: entries after it, of a run that was cut off later than its last checkpoint, are dropped.
    """

    def __init__(self, folder: Path, start_step: int):
        self.path = folder / "log.jsonl"
        self.curve_path = folder / "loss.png"
        self.entries = []
        if self.path.exists():
            lines = self.path.read_text().splitlines()
            entries = (json.loads(line) for line in lines if line.endswith("}"))  # not one that a crash cut off
            self.entries = [entry for entry in entries if entry["step"] <= start_step]
        with replacing(self.path) as temporary:
            temporary.write_text("".join(f"{json.dumps(entry)}\n" for entry in self.entries))

    def add(self, entry: dict[str, float]) -> None:
        """Appends one entry; it must have a step."""
        self.entries.append(entry)
        with open(self.path, "a") as file:
            file.write(f"{json.dumps(entry)}\n")

    def render_curve(self) -> None:
        """Draws the losses over the steps."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for key, style in (("loss", "-"), ("mouth_loss", "-"), ("validation_loss", "o-")):
            points = [(entry["step"], entry[key]) for entry in self.entries if key in entry]
            if points:
                axes.plot(*zip(*points), style, label=key.replace("_", " "), linewidth=1, markersize=4)
        axes.set(xlabel="step", ylabel="loss", yscale="log")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
        with replacing(self.curve_path) as temporary:
            figure.savefig(temporary, dpi=120, format="png")


def describe_run(weight_paths: list[Path]) -> dict[str, str]:
    """What a run was made with: versions, the git commit, and a sha256 of each file of weights."""
    packages = {name: version(name) for name in ("torch", "diffusers", "transformers", "accelerate")}
    command = ["git", "-C", str(Path(__file__).parent), "describe", "always", "dirty", "--abbrev=40"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "not known: no git, or no checkout"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu"
    return {
        "python": platform.python_version(),
        **packages,
        "device": device,
        "commit": commit,
        **{str(path): f"sha256 {_hash_file(path)}" for path in weight_paths},
    }


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
