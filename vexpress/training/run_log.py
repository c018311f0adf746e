"""What a run leaves to read: a header, lines of metrics, and a picture of the loss."""

import json
import logging
import platform
import resource
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from vexpress.files import hash_file, replacing

logger = logging.getLogger(__name__)


class RunLog:
    """Numbers of a run in `log.jsonl`, a JSON object per line, and `loss.png`.

    Args:
        folder: of the run.
        start_step: entries after it, of a run that was cut off later than its last checkpoint, are dropped, as are
            lines that are damaged.
    """

    def __init__(self, folder: Path, start_step: int):
        self.path = folder / "log.jsonl"
        self.curve_path = folder / "loss.png"
        self.entries: list[dict[str, float]] = []
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
            parsed = [_parse_entry(line) for line in lines]
            if None in parsed[:-1]:  # the last line may have been cut off by a kill
                logger.warning("%s: %d damaged lines are dropped", self.path, parsed[:-1].count(None))
            self.entries = [entry for entry in parsed if entry is not None and entry["step"] <= start_step]
        with replacing(self.path) as temporary:
            temporary.write_text("".join(f"{json.dumps(entry)}\n" for entry in self.entries))

    def add(self, entry: dict[str, float]) -> None:
        """Appends one entry; it must have a step."""
        self.entries.append(entry)
        with open(self.path, "a") as file:
            file.write(f"{json.dumps(entry)}\n")

    def add_update(self, entry: dict[str, float], num_steps: int) -> None:
        """Appends the metrics of an update, and logs them in one line.

        Args:
            entry: step, and means since the last entry: loss, mouth_loss, grad_norm, lr, seconds_per_step,
                data_seconds, samples_per_second; and peak_memory_gib.
            num_steps: updates of the whole run.
        """
        self.add(entry)
        logger.info(
            "step %d/%d | loss %.4f | mouth %.4f | grad norm %.3f | lr %.2e | %.2f s/step, %.2f waiting for data | "
            "%.2f samples/s | peak %.1f GiB | %.0f min left",
            entry["step"],
            num_steps,
            entry["loss"],
            entry["mouth_loss"],
            entry["grad_norm"],
            entry["lr"],
            entry["seconds_per_step"],
            entry["data_seconds"],
            entry["samples_per_second"],
            entry["peak_memory_gib"],
            (num_steps - entry["step"]) * entry["seconds_per_step"] / 60,
        )

    def render_curve(self) -> None:
        """Renders the losses over the steps."""
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


def peak_memory_gib(device: torch.device) -> float:
    """Largest amount of memory that this process has used so far: the device's on CUDA, or else the host's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # of KiB, on Linux


def append_header(path: Path, header: dict[str, Any]) -> None:
    """Adds a line to a file of JSON lines, which a full disk or a kill leaves as it was."""
    former = path.read_bytes() if path.exists() else b""
    with replacing(path) as temporary:
        temporary.write_bytes(former + f"{json.dumps(header)}\n".encode())


def _parse_entry(line: str) -> dict[str, float] | None:
    """A line of the log, or None if it is damaged: a step, and numbers."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or type(entry.get("step")) is not int:
        return None
    return entry if all(type(value) in (int, float) for value in entry.values()) else None


def describe_run(weight_paths: list[Path]) -> dict[str, str]:
    """Collects what a run is made with: versions, the git commit, and a sha256 of each file of weights."""
    packages = {name: version(name) for name in ("torch", "diffusers", "transformers", "accelerate")}
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
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
        **{str(path): f"sha256 {hash_file(path)}" for path in weight_paths},
    }
