"""Files that are never half-written, and paths that are checked before the work begins."""

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vexpress.errors import InputError

HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
MODEL_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".json", ".onnx", ".model", ".txt")
MAX_JSON_BYTES = 2**26
HASH_BLOCK_BYTES = 2**24
FULL_BYTES = 2**16  # a disk with less than this is full
TEMPORARY_NAME = re.compile(r"\.([0-9a-f]{8})-(\d+)-[0-9a-f]{32}\.part")
"""Host and process that write a temporary file, so that the next run knows which files nobody writes any more."""


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path beside `path`; moves it into place on success and removes it on any failure.

    What is moved into place is on the disk first, so that a power cut leaves the old file or the new one. The temporary
    name keeps the suffix, since encoders choose the container by it, and has nothing of the user's name, so that a long
    or odd name stays valid.
    """
    path = Path(path)
    _remove_leftovers_once(path.parent.absolute())
    temporary = temporary_path(path)
    try:
        yield temporary
        umask = os.umask(0)  # it can only be read by setting it
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # some libraries create files that only their owner may read
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):  # nobody knows the temporary name
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    except InputError:
        raise
    except Exception as error:  # writers of tensors have errors of their own for a full disk
        if "(os error 28)" in str(error) or shutil.disk_usage(path.parent).free < FULL_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: str | os.PathLike, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Reads a JSON file of a size that ours have, so that memory is bounded.

    Raises:
        OSError, ValueError: it cannot be read, or is not such a file.
    """
    try:
        return json.loads(read_text(path, max_bytes))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_text(path: str | os.PathLike, max_bytes: int) -> str:
    """Reads a file of text.

    Raises:
        OSError, ValueError: it cannot be read, is a device or pipe (which might never answer), too large, or no UTF-8.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        reason = "is a folder" if stat.S_ISDIR(status.st_mode) else "is a device or pipe"
        raise OSError(errno.EINVAL, reason, os.fspath(path))
    if status.st_size > max_bytes:
        raise ValueError(f"larger than {max_bytes} bytes")
    return Path(path).read_text(encoding="utf-8")


def hash_file(path: str | os.PathLike) -> str:
    """The sha256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def in_one_order(content: bytes) -> bytes:
    """A safetensors file with a sorted header, since the library writes metadata in an order by chance."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)  # tensors start at multiples of 8
    return len(header).to_bytes(8, "little") + header + content[end:]


def sync(path: Path) -> None:
    """Has the disk hold a file, or a folder's list of names, before this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files of `replacing`, and folders named alike, whose process on this machine was killed."""
    with contextlib.suppress(OSError):
        names = [name for name in os.listdir(folder) if name.startswith(f".{HOST}-")]
        for name in names:
            match = TEMPORARY_NAME.match(name)
            if match and not is_alive(int(match[2])):
                remove(folder / name)


@functools.cache
def _remove_leftovers_once(folder: Path) -> None:
    """As `remove_leftovers`, at a process's first file there: a folder may get a hundred thousand files, one by one."""
    remove_leftovers(folder)


def remove(path: Path) -> None:
    """Removes a file or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """A name beside `path` for what is not complete yet; `remove_leftovers` knows it."""
    return path.parent / f".{HOST}-{os.getpid()}-{uuid.uuid4().hex}.part{path.suffix}"


def is_alive(process_id: int) -> bool:
    """Whether this machine has a process of this number."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def check_output_path(
    path: str | os.PathLike,
    field: str,
    inputs: Sequence[str | os.PathLike | None] = (),
    model_dirs: Sequence[str | os.PathLike | None] = (),
    suffixes: Sequence[str] = (),
) -> Path:
    """Finds out before hours of work whether `path` can be written, and that nothing is lost by it.

    Args:
        path: file to write; where a link leads to, if it is one.
        field: for messages.
        inputs: files that are read, and other files that are written, none of which `path` may be.
        model_dirs: folders or files of models; `path` may not be one of their files, or one that would be loaded.
        suffixes: of what the file will hold; none: any.

    Raises:
        InputError: the folder is missing or not writable, or `path` is no regular file, one of the inputs, a file of a
            model, or of another suffix.
    """
    try:
        if "\0" in os.fspath(path):  # Python's own checks of such a path say that it is not there
            raise ValueError("holds a NUL character")
        path = Path(path).resolve() if Path(path).is_symlink() else Path(path)
        if path.is_dir():
            raise InputError("is a folder; give the name of a file to write", field, path)
        if path.exists() and not path.is_file():
            raise InputError(f"is a device or pipe, not a file; change `{field}`", field, path)
        if not path.parent.is_dir():
            raise InputError(f"the folder {path.parent} does not exist; create it or change `{field}`", field, path)
        if any(is_same_file(path, given) for given in inputs if given):
            raise InputError(f"is also one of the inputs or other outputs; change `{field}`", field, path)
        for folder in filter(None, model_dirs):
            could_be_loaded = path.exists() or path.suffix.lower() in MODEL_SUFFIXES
            if could_be_loaded and path.resolve().is_relative_to(Path(folder).resolve()):
                raise InputError(f"would be a file of the model in {folder}; change `{field}`", field, path)
        if suffixes and path.suffix.lower() not in suffixes:
            raise InputError(f"must end in {' or '.join(suffixes)}", field, path)
        tempfile.TemporaryFile(dir=path.parent).close()
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"is no path ({error}); change `{field}`", field, repr(str(path))) from error
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror}); change `{field}`", field, path) from error
    return path


def is_same_file(one: str | os.PathLike, other: str | os.PathLike) -> bool:
    """Whether two paths lead to one file, which need not exist yet."""
    if Path(one).resolve() == Path(other).resolve():
        return True
    return Path(one).exists() and Path(other).exists() and Path(one).samefile(other)


def replace_folder(partial: Path, final: Path) -> None:
    """Moves a finished folder into place: all of it is on the disk before it bears its name.

    A folder that was there is moved aside first, to `former_folder`; if the process is killed between the two moves,
    it is only there.

    Args:
        partial: folder beside `final`, which nobody writes to any more.
        final: its name from now on.
    """
    for path in [*partial.rglob("*"), partial]:
        if not path.is_symlink():
            sync(path)
    if final.exists():
        final.rename(former_folder(final))
    partial.rename(final)
    sync(final.parent)
    remove_folder(former_folder(final))


def former_folder(final: Path) -> Path:
    """Where `replace_folder` moves what was there."""
    return final.with_name(f".{final.name}.former")


def remove_folder(folder: Path) -> None:
    """Removes a folder, if it is there, so that it is never seen half-removed under its name."""
    if not folder.exists():
        return
    if not folder.name.startswith("."):
        folder = folder.rename(folder.with_name(f".{folder.name}.part"))
    shutil.rmtree(folder, ignore_errors=True)
