"""Checkpoints of a run: how their folders are named, and whether one is as it was written."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vexpress.errors import InputError, first_line
from vexpress.files import hash_file
from vexpress.model_folder import read_config

STATE_FILE = "trainer.json"
NAME = re.compile(r"step_(\d{8})")
"""Of a checkpoint. A folder of any other name, such as a user's own copy, is none."""


@dataclass(frozen=True)
class Progress:
    """How far a run had come.

    Attributes:
        step: number of updates.
        num_samples: that all processes together had been trained on.
        stage: name of the stage.
        clips: number and digest of what the samples are of; "" in checkpoints of earlier versions.
    """

    step: int = 0
    num_samples: int = 0
    stage: str = ""
    clips: str = ""


def checkpoint_path(run_folder: Path, step: int) -> Path:
    """The folder of a checkpoint."""
    return run_folder / "checkpoints" / f"step_{step:08d}"


def partial_path(checkpoint: Path) -> Path:
    """The folder that a checkpoint is written to before it gets its name."""
    return checkpoint.with_name(f".{checkpoint.name}.part")


def find_checkpoints(run_folder: Path) -> list[Path]:
    """Folders of all checkpoints, the oldest first."""
    found = (run_folder / "checkpoints").glob("step_*")
    return sorted(path for path in found if NAME.fullmatch(path.name) and path.is_dir())


def find_leftovers(run_folder: Path) -> Iterator[Path]:
    """Checkpoints that a killed run has written or removed in part."""
    return (run_folder / "checkpoints").glob(".step_*.part")


def write_progress(checkpoint: Path, progress: Progress) -> None:
    """Writes down what a checkpoint is of, with a digest of each of its files; the last file to be written."""
    files = {str(path.relative_to(checkpoint)): hash_file(path) for path in _files(checkpoint)}
    (checkpoint / STATE_FILE).write_text(json.dumps({**vars(progress), "sha256": files}))


def read_progress(checkpoint: Path, verify: bool = True) -> Progress:
    """Reads what a checkpoint is of.

    Args:
        checkpoint: its folder.
        verify: compare the files with their digests; checkpoints of earlier versions have none.

    Raises:
        InputError: the checkpoint is damaged; the message is a reason without the folder's name.
    """
    try:
        state = read_config(checkpoint / STATE_FILE)
        progress = Progress(state["step"], state["num_samples"], state["stage"], state.get("clips", ""))
        digests = state.get("sha256", {})
        is_whole = [*map(type, vars(progress).values())] == [int, int, str, str] and isinstance(digests, dict)
        if not is_whole or progress.num_samples < 0 or checkpoint.name != f"step_{progress.step:08d}":
            raise InputError(f"{STATE_FILE} is not what was saved")
        for name, digest in digests.items() if verify else ():
            path = checkpoint / name.replace("\0", "")
            if not path.resolve().is_relative_to(checkpoint.resolve()):
                raise InputError(f"{STATE_FILE} is not what was saved")
            if not path.is_file():  # a device would be read without end
                raise InputError(f"{name}: No such file")
            if hash_file(path) != digest:
                raise InputError(f"{name} is not what was saved")
    except KeyError as error:
        raise InputError(f"{STATE_FILE} lacks {error}") from error
    except OSError as error:
        raise InputError(f"{Path(error.filename or '').name}: {error.strerror}") from error
    return progress


def read_newest(run_folder: Path, verify: bool = True) -> tuple[Path | None, Progress]:
    """Reads the newest checkpoint; None at the start of a run.

    Raises:
        InputError: it is damaged; names the newest one that is not, and what to do.
    """
    found = find_checkpoints(run_folder)
    if not found:
        return None, Progress()
    try:
        return found[-1], read_progress(found[-1], verify)
    except InputError as error:
        advice = f"no other one is intact: delete {found[-1].parent} to start anew, or change `output_dir`"
        for path in reversed(found[:-1]):
            if _is_intact(path):
                newer = ", ".join(other.name for other in found[found.index(path) + 1 :])
                advice = f"{path.name} is intact: delete {newer}, and the same command resumes from it"
                break
        raise InputError(f"checkpoint {found[-1]} is damaged ({first_line(error)}); {advice}") from error


def _is_intact(checkpoint: Path) -> bool:
    try:
        read_progress(checkpoint)
    except InputError:
        return False
    return True


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != STATE_FILE)
