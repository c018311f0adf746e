"""What every program needs: device, dtype, arguments, logging, errors for users, files that are never half-written."""

import argparse
import contextlib
import errno
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class InputError(ValueError):
    """What a user gave cannot be used. The message is one line: what was got, what is allowed, which flag to change."""


def first_line(error: Exception) -> str:
    """What an error says, as far as it fits a message of one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults that are values."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """Parses flags; a mistake is an `InputError`, and the value of a flag may start with a dash."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, **options)

    def parse_known_args(self, args=None, namespace=None):
        """As argparse, but `--audio_path -a.mp3` means `--audio_path=-a.mp3`."""
        joined: list[str] = []
        for argument in sys.argv[1:] if args is None else args:
            flag = self._option_string_actions.get(joined[-1]) if joined else None
            takes_value = flag is not None and flag.nargs is None
            if takes_value and argument.startswith("-") and argument not in self._option_string_actions:
                joined[-1] += f"={argument}"
            else:
                joined.append(argument)
        return super().parse_known_args(joined, namespace)

    def error(self, message: str):
        """Raises instead of printing the usage and exiting."""
        raise InputError(f"{message}; see --help")


def resolve_device(name: str | None = None, gpu_id: int = 0) -> torch.device:
    """Turns a device name into a device that works here.

    Args:
        name: "cuda", "mps" or "cpu"; None takes the first of these that is there.
        gpu_id: index of the CUDA device, 0 and up.

    Raises:
        InputError: the device is not there.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise InputError("--device cuda: no CUDA device is available to this PyTorch build; use --device cpu")
        if not 0 <= gpu_id < torch.cuda.device_count():
            raise InputError(f"--gpu_id {gpu_id}: this machine has CUDA devices 0 to {torch.cuda.device_count() - 1}")
        return torch.device("cuda", gpu_id)
    if name == "mps" and not torch.backends.mps.is_available():
        raise InputError("--device mps: no Apple GPU is available; use --device cpu")
    if name not in ("mps", "cpu"):
        raise InputError(f"--device {name}: allowed are cuda, cpu and mps")
    return torch.device(name)


def resolve_dtype(name: str) -> torch.dtype:
    """Turns "fp16", "bf16" or "fp32" into a dtype.

    Raises:
        InputError: any other name.
    """
    if name not in DTYPES:
        raise InputError(f"--dtype {name}: allowed are {', '.join(DTYPES)}")
    return DTYPES[name]


def set_up_logging(level: int = logging.INFO) -> None:
    """Sends log lines to stderr, and quiets the libraries that talk a lot."""
    logging.basicConfig(level=level, stream=sys.stderr, format="%(levelname)s: %(message)s", force=True)
    for name in ("libav", "accelerate", "diffusers", "transformers", "httpx", "httpx2", "numba", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path beside `path`; moves it into place on success and removes it on any failure.

    The temporary name keeps the suffix, since encoders choose the container by it, and starts with a dot and nothing
    of the user's name, so that a long or odd name stays valid.
    """
    path = Path(path)
    temporary = path.parent / f".{uuid.uuid4().hex}.part{path.suffix}"
    try:
        yield temporary
        umask = os.umask(0)  # it can only be read by setting it
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # some libraries create files that only their owner may read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_output_path(path: str | os.PathLike, flag: str, inputs: Sequence[str | os.PathLike | None] = ()) -> Path:
    """Finds out before hours of work whether `path` can be written.

    Args:
        path: file to write; where a link leads to, if it is one.
        flag: for messages.
        inputs: files that are read, which `path` must not be.

    Raises:
        InputError: the folder is missing or not writable, or `path` is no regular file, or one of the inputs.
    """
    try:
        path = Path(path).resolve() if Path(path).is_symlink() else Path(path)
        if path.is_dir():
            raise InputError(f"{flag} {path}: is a folder; give the name of a file to write")
        if path.exists() and not path.is_file():
            raise InputError(f"{flag} {path}: is a device or pipe, not a file; change {flag}")
        if not path.parent.is_dir():
            raise InputError(f"{flag} {path}: the folder {path.parent} does not exist; create it or change {flag}")
        if path.exists() and any(given and Path(given).exists() and path.samefile(given) for given in inputs):
            raise InputError(f"{flag} {path}: is one of the inputs, which would be lost; change {flag}")
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise InputError(f"{flag} {path}: cannot be written ({error.strerror}); change {flag}") from error
    return path


def run_program(main: Callable[[], None]) -> int:
    """Runs a program's main function and turns what a user can cause into one clear line and an exit code.

    Returns:
        0 on success, 2 for bad input, a full disk or a file that cannot be read or written, 130 after Ctrl-C. Anything
        else is a bug and keeps its traceback.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it, too, cleans up
    try:
        main()
    except InputError as error:
        rank = os.environ.get("RANK", "0")
        who = "" if rank == "0" else f" (process {rank})"
        print(f"error{who}: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "no space left on the disk"
        elif error.filename and error.strerror:
            reason = error.strerror
        else:
            raise
        print(f"error: {reason}: {error.filename or 'output'}; free space or change the path", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted: nothing half-written is left", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0
