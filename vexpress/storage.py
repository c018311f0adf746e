"""Paths on this machine and in object stores: s3://, gs://, hf://, memory:// and whatever else fsspec knows.

A path of an object store is a `UPath`, which looks like a `pathlib.Path`; a path of this machine stays one. Readers of
media and tensors want files, so what is remote is copied here to be read, and made here to be written.
"""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any, Union

from vexpress import files
from vexpress.errors import InputError, first_line
from vexpress.files import MAX_JSON_BYTES, replacing

if TYPE_CHECKING:
    from upath import UPath

AnyPath = Union[Path, "UPath"]
URL = re.compile(r"[A-Za-z][A-Za-z0-9+]+://")
EXTRAS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub", "az": "adlfs"}


def to_path(text: str | os.PathLike) -> AnyPath:
    """A URL becomes a remote path, all else a path of this machine.

    Raises:
        InputError: nothing is installed that reads such URLs.
    """
    if not isinstance(text, str) or not URL.match(text):
        return Path(text) if isinstance(text, str) else text
    scheme = text.split("://")[0].lower()
    try:
        from upath import UPath

        path = UPath(text, use_listings_cache=False)
        path.fs  # noqa: B018 - imports the file system
    except ImportError as error:
        package = EXTRAS.get(scheme, scheme) if "upath" not in str(error) else "universal_pathlib"
        raise InputError(f"{scheme}:// needs a package that is not installed: pip install {package}") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{text}: cannot be used as a path ({first_line(error)})") from error
    return path


def is_remote(path: AnyPath) -> bool:
    """Whether a path lies in an object store."""
    return not isinstance(path, PurePath)


def check_reachable(path: AnyPath, field: str) -> None:
    """Asks a store for a path, so that a wrong name or missing keys are found before the work.

    Raises:
        InputError: the store does not answer, or refuses.
    """
    if is_remote(path):
        try:
            path.exists()
        except Exception as error:  # each store has errors of its own
            problem = f"cannot be reached ({first_line(error)}); are address and keys right?"
            raise InputError(problem, field, path) from error


def child(folder: AnyPath, name: str) -> AnyPath:
    """A path below a folder, by a name that came from a file that nobody vouches for.

    Raises:
        InputError: of a remote folder: the name leads out of it.
    """
    if is_remote(folder) and (PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or ":" in name):
        raise InputError(f"{name!r} leads out of {folder}; there, names must be below it")
    return folder / name


@contextlib.contextmanager
def local_copy(path: AnyPath) -> Iterator[Path]:
    """Gives a file to read on this machine: itself, or a copy of its name that is removed afterwards.

    Raises:
        OSError: it is not there or cannot be read.
    """
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="vexpress-") as folder:
        local = Path(folder, path.name)
        path.fs.get_file(path.path, os.fspath(local))
        yield local


@contextlib.contextmanager
def writing(path: AnyPath) -> Iterator[Path]:
    """As `vexpress.files.replacing`, to any store: gives a local path, and puts what is there in place at the end."""
    if not is_remote(path):
        with replacing(path) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory(prefix="vexpress-") as folder:
        local = Path(folder, path.name)
        yield local
        path.fs.put_file(os.fspath(local), path.path)


def put_folder(folder: Path, target: "UPath", last: str) -> None:
    """Puts the files of a folder into a store; the file named `last` comes last, so that where it is, all are."""
    remove(target)
    for path in sorted(folder.iterdir(), key=lambda path: (path.name == last, path.name)):
        target.fs.put_file(os.fspath(path), f"{target.path}/{path.name}")


def remove(path: AnyPath) -> None:
    """Removes a file, or a folder with all that is in it, if it is there."""
    if not is_remote(path):
        files.remove(path)
    elif path.exists():
        path.fs.rm(path.path, recursive=True)


def read_json(path: AnyPath, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """As `vexpress.files.read_json`, from any store."""
    if not is_remote(path):
        return files.read_json(path, max_bytes)
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"larger than {max_bytes} bytes")
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def find_files(folder: "UPath") -> "list[UPath]":
    """All files of a remote folder, at any depth."""
    prefix = folder.path.rstrip("/") + "/"
    return [folder / name.removeprefix(prefix) for name in folder.fs.find(folder.path) if name.startswith(prefix)]
