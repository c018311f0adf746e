"""Times the command from its start to its end, in fresh processes."""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from vexpress.benchmarks.measuring import Table, take_turns
from vexpress.benchmarks.settings import StartupSettings
from vexpress.errors import InputError
from vexpress.media.video import read_frames

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "vexpress"]
PASS, DEFAULT_RUN = "python -c pass", "vexpress generate"
COMMANDS = {
    PASS: ([sys.executable, "-c", "pass"], 0),
    "vexpress --help": ([*COMMAND, "--help"], 0),
    "vexpress generate --help": ([*COMMAND, "generate", "--help"], 0),
    "vexpress generate --no_such_flag": ([*COMMAND, "generate", "--no_such_flag"], 2),
    DEFAULT_RUN: ([*COMMAND, "generate"], 0),
}
"""Row -> command, and its expected exit code."""
VIDEO_PATH = Path("output/demo.mp4")


def run_command(command: list[str], expected: int, folder: Path) -> float:
    """Runs a command in an empty folder, with this package.

    Returns:
        CPU time of its process, s, which other work on the machine changes less than the time that passes.

    Raises:
        InputError: it ends with another exit code.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    before = os.times()
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if result.returncode != expected:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{' '.join(command)}: ended with {result.returncode}, not {expected}: {last}")
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def measure(settings: StartupSettings) -> Table:
    """Times commands in turns.

    Raises:
        InputError: a command fails, or the other checkout has no program.
    """
    with tempfile.TemporaryDirectory() as folder:
        if settings.other is not None:
            roots = {"this": ROOT, "other": Path(settings.other).resolve()}
            return compare_checkouts(roots, settings.rounds, Path(folder))
        rows = {name: partial(run_command, *command, Path(folder)) for name, command in COMMANDS.items()}
        seconds, _ = take_turns(rows, settings.rounds)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    cells = [
        [name, f"{median:.2f}", f"{min(seconds[name]):.2f}", f"{median / medians[PASS]:.1f}"]
        for name, median in medians.items()
    ]
    return Table(["command", "median s", "fastest s", "median to python's"], cells)


def compare_checkouts(roots: Mapping[str, Path], rounds: int, folder: Path) -> Table:
    """Times default runs of inference.py of two checkouts, in turns, and compares their videos.

    Args:
        roots: name -> folder of the checkout; ratios are to the last one.
        rounds: timed runs of each.
        folder: empty, to work in.

    Raises:
        InputError: one of them has no inference.py, or fails.
    """
    runs: dict[str, Callable[[], None]] = {}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in roots}

    def run(name: str, program: Path) -> None:
        cpu_seconds[name].append(run_command([sys.executable, str(program)], 0, folder / name))

    for name, root in roots.items():
        program = root / "inference.py"
        if not program.is_file():
            raise InputError(f"{program}: no such file; both must be checkouts of the repository", name, root)
        (folder / name).mkdir()
        runs[name] = partial(run, name, program)
    seconds, _ = take_turns(runs, rounds, warmup=1)  # the first run of each compiles its modules
    medians = [statistics.median(times) for times in seconds.values()]
    cpu_medians = [statistics.median(times[1:]) for times in cpu_seconds.values()]
    videos = [np.stack([frame for _, frame in read_frames(folder / name / VIDEO_PATH)]) for name in roots]
    difference = "another size"
    if videos[0].shape == videos[1].shape:
        difference = str(np.ptp(np.stack(videos), axis=0).max())
    cells = [
        [name, f"{time:.2f}", f"{time / medians[-1]:.3f}", f"{cpu:.2f}", f"{cpu / cpu_medians[-1]:.3f}", difference]
        for name, time, cpu in zip(roots, medians, cpu_medians)
    ]
    header = ["default run of the checkout", "median s", "to the other's", "median CPU s", "to the other's"]
    return Table([*header, "max difference of pixels"], cells)
