"""Files that are never half-written, and paths that are checked before the work begins."""

import contextlib
import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from vexpress.errors import InputError


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


def check_output_path(path: str | os.PathLike, field: str, inputs: Sequence[str | os.PathLike | None] = ()) -> Path:
    """Finds out before hours of work whether `path` can be written.

    Args:
        path: file to write; where a link leads to, if it is one.
        field: for messages.
        inputs: files that are read, which `path` must not be.

    Raises:
        InputError: the folder is missing or not writable, or `path` is no regular file, or one of the inputs.
    """
    try:
        path = Path(path).resolve() if Path(path).is_symlink() else Path(path)
        if path.is_dir():
            raise InputError("is a folder; give the name of a file to write", field, path)
        if path.exists() and not path.is_file():
            raise InputError(f"is a device or pipe, not a file; change `{field}`", field, path)
        if not path.parent.is_dir():
            raise InputError(f"the folder {path.parent} does not exist; create it or change `{field}`", field, path)
        if path.exists() and any(given and Path(given).exists() and path.samefile(given) for given in inputs):
            raise InputError(f"is one of the inputs, which would be lost; change `{field}`", field, path)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror}); change `{field}`", field, path) from error
    return path
