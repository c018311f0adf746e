"""What benchmarks share: time, memory, and the table that they show."""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

PROCESS_STATUS = Path("/proc/self/status")  # only Linux has it


@dataclass(frozen=True)
class Table:
    """A table of results; the first cell of a row names it."""

    header: list[str]
    rows: list[list[str]]

    def format(self) -> str:
        """Lines of aligned columns."""
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows)]
        lines = (zip(row, widths) for row in (self.header, *self.rows))
        return "\n".join("  ".join(cell.ljust(width) for cell, width in line).rstrip() for line in lines)


def take_turns(
    rows: Mapping[str, Callable[[], Any]],
    repeats: int,
    warmup: int = 0,
    settle: Callable[[], None] = lambda: None,
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Times functions in turns, so that whatever else the machine does affects all of them alike.

    Args:
        rows: name -> what is timed.
        repeats: timed turns.
        warmup: turns before, which are not timed.
        settle: called before and after each function, to wait for a device.

    Returns:
        Seconds of each turn by name, and the last results by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    results: dict[str, Any] = {}
    for turn in range(warmup + repeats):
        for name, function in rows.items():
            settle()
            start = time.perf_counter()
            results[name] = function()
            settle()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds, results


class Stopwatch:
    """Times the parts of a run that follow one another."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def mark(self, part: str) -> None:
        """Ends a part."""
        synchronize(self.device)
        now = time.perf_counter()
        self.seconds[part] = now - self._since
        self._since = now


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def reset_gpu_peak(device: torch.device) -> None:
    """Forgets the peak of a CUDA device's memory; nothing on others."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def gpu_peak(device: torch.device) -> str:
    """The peak of a CUDA device's memory since `reset_gpu_peak`; "-" on others."""
    return gib(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else "-"


def process_memory(field: str) -> int:
    """Bytes of memory of this process: "VmRSS" now, "VmHWM" at its peak, "RssAnon" now without mapped files."""
    return int(re.search(rf"^{field}:\s+(\d+) kB", PROCESS_STATUS.read_text(), re.MULTILINE)[1]) * 1024


def gib(num_bytes: float) -> str:
    """Bytes in words, as GiB."""
    return f"{num_bytes / 2**30:.2f} GiB"
