"""Numbers from files that are not trusted: no code in a file is run, and a small file takes little memory."""

import math
import os
import pickle
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from vexpress.errors import InputError
from vexpress.media.archives import check_unpacked_size
from vexpress.media.keypoints import NUMPY_SAFE_GLOBALS

MIN_UNPACKED_BYTES, MAX_COMPRESSION = 2**26, 100  # what a file may always unpack to, and how much more than its size
MAX_NUMBERS_PER_FRAME = 2**16


def as_path(path: str | os.PathLike, key: str) -> Path:
    """Checks that an argument is a path; `key` is its name in messages.

    Raises:
        InputError: it is not.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError("must be a path", key, textwrap.shorten(repr(path), 80))
    return Path(path)


def checked_path(path: str | os.PathLike, key: str, suffixes: tuple[str, ...]) -> Path:
    """Checks that a path has one of these suffixes.

    Raises:
        InputError: it has another one, or is no path.
    """
    path = as_path(path, key)
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{key} {path}: such files end in {', '.join(suffixes)}")
    return path


def readable_path(path: str | os.PathLike, key: str, suffixes: tuple[str, ...]) -> Path:
    """Checks that a path is that of a file, with one of these suffixes.

    Raises:
        InputError: it is not.
    """
    path = checked_path(path, key, suffixes)
    if not path.is_file():
        raise InputError(f"{key} {path}: {'is a folder' if path.is_dir() else 'does not exist'}")
    return path


def most_bytes(path: Path) -> int:
    """What may be made of a file in memory."""
    return max(MIN_UNPACKED_BYTES, MAX_COMPRESSION * path.stat().st_size)


def read_file(path: Path, key: str) -> Any:
    """Reads `.npz`, `.safetensors` or a PyTorch file; of its pickle only what tensors and numpy arrays consist of.

    Raises:
        InputError: damaged, refused, or a small archive that unpacks to much.
    """
    try:
        check_unpacked_size(path, key, most_bytes(path))
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        if path.suffix.lower() == ".safetensors":
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals(NUMPY_SAFE_GLOBALS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # the readers raise anything at all on damaged files, each of its own
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise InputError(f"{key} {path}: refused, since it holds Python objects that can run code") from error
        raise InputError(f"{key} {path}: is damaged ({type(error).__name__}); extract it again") from error


def float_array(values: Any, max_bytes: int, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Stacks numbers, arrays or tensors, one per frame.

    Sizes are looked at before anything is converted: all frames may refer to one array, in a few bytes of the file.

    Args:
        values: n of them; or anything else.
        max_bytes: that the result may take, see `most_bytes`.
        shape: that each should have; None is any.

    Returns:
        (n *shape) float32. Where they have another shape, (0 *theirs); what cannot be stacked, or is too large, is an
        array of no dimension.
    """
    try:
        shapes = {shape_of(value) for value in values} or {()}
        [found] = shapes
        num_numbers = math.prod(found)
        if num_numbers > MAX_NUMBERS_PER_FRAME or len(values) * num_numbers * 4 > max_bytes:
            raise ValueError("too large")
        if shape is not None and found != shape:
            return np.empty((0, *found), np.float32)
        array = np.empty((len(values), *found), np.float32)
        for index, value in enumerate(values):
            array[index] = float_item(value)
        return array
    except (TypeError, ValueError, OverflowError):
        return np.empty((), np.float32)


def shape_of(value: Any) -> tuple[int, ...]:
    """The shape of a number, list, array or tensor, without a look at what is in it; () of what has none."""
    if isinstance(value, Tensor) and value.is_nested:
        return ()
    return (len(value),) if isinstance(value, list | tuple) else tuple(getattr(value, "shape", ()))


def float_item(value: Any) -> np.ndarray:
    """Converts a number, a list of numbers, or an array or tensor of real numbers to float32.

    Raises:
        TypeError: anything else, such as lists in lists, which may hold one another many times over.
    """
    if isinstance(value, Tensor):
        value = _plain_tensor(value).numpy()
    elif isinstance(value, list | tuple) and not all(isinstance(item, int | float | np.number) for item in value):
        raise TypeError("a list of other things than numbers")
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"holds {array.dtype}")
    return array.astype(np.float32, copy=False)


def _plain_tensor(tensor: Tensor) -> Tensor:
    """A tensor as float32.

    Raises:
        TypeError: it is complex, quantized, sparse, nested or meta, or has fewer values in the file than it claims.
    """
    is_odd = tensor.is_quantized or tensor.is_complex() or tensor.is_meta or tensor.is_nested
    if tensor.layout is not torch.strided or is_odd:
        raise TypeError("is no plain tensor")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():  # a few bytes may claim terabytes
        raise TypeError("repeats its values")
    return tensor.detach().float()
