"""Zip archives, as .npz and .pth are, which a small file can make arbitrarily large."""

import os
import zipfile

from vexpress.errors import InputError

MAX_UNPACKED_BYTES = 2**28


def check_unpacked_size(path: str | os.PathLike, field: str, max_bytes: int = MAX_UNPACKED_BYTES) -> None:
    """Raises an InputError if a file, perhaps a zip archive, needs more memory than its kind of file does.

    Args:
        path: file to read.
        field: the option that gave the path, for the error.
        max_bytes: allowed for all members together.

    Raises:
        zipfile.BadZipFile: the archive is damaged.
    """
    num_bytes = os.stat(path).st_size  # of a file that is no archive, and may be as large by holes
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            num_bytes = sum(member.file_size for member in archive.infolist())
    if num_bytes > max_bytes:
        allowed = f"allowed are {max_bytes >> 20} MiB"
        raise InputError(f"unpacks to {num_bytes >> 20} MiB, too much for its kind; {allowed}", field, path)
