"""State dicts from files: nothing in a file is executed, and a network gets exactly the weights it has."""

import pickle
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from types import MappingProxyType

import safetensors.torch
import torch
from torch import Tensor, nn

from vexpress.errors import InputError, first_line
from vexpress.weights.bounds import check_archive

BYTES_PER_MAPPING = 2**29
OLD_AUDIO_ATTENTION = re.compile(r"attn2\.processor\.to_(q|k|v|out)_aud\.(0\.)?")


def read_state_dict(path: str | PathLike) -> dict[str, Tensor]:
    """Maps a weights file into memory, without reading it yet and without executing anything in it.

    Args:
        path: `.safetensors`, or a PyTorch file under any other suffix.

    Raises:
        InputError: missing, damaged, not a flat dictionary of tensors, a packed archive, or a pickle that wants to run
            code.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"weights file {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            weights = safetensors.torch.load_file(path)
        else:
            check_archive(path)
            mmap = _is_zip(path)  # the format before PyTorch 1.6 cannot be mapped
            weights = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except InputError as error:
        raise InputError(f"weights file {path}: {error.problem}") from error
    except Exception as error:  # parsers of damaged files raise anything
        wants_code = isinstance(error, pickle.UnpicklingError) and "Unsupported" in str(error)
        what = "refused, holds more than tensors" if wants_code else "damaged or not a weights file"
        raise InputError(f"weights file {path}: {what} ({first_line(error)})") from error
    if isinstance(weights, dict) and isinstance(weights.get("state_dict"), dict):
        weights = weights["state_dict"]
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    ):
        raise InputError(f"weights file {path}: does not hold a dictionary of tensors")
    if odd := [name for name, value in weights.items() if not _is_plain(value)]:
        raise InputError(f"weights file {path}: {odd[0]} is no plain tensor")
    return rename_old_audio_attention(weights)


def _is_plain(tensor: Tensor) -> bool:
    is_odd = tensor.is_quantized or tensor.is_complex() or tensor.is_meta or tensor.is_nested
    return tensor.layout is torch.strided and not is_odd


def rename_old_audio_attention(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Brings the older form of audio attention to its present names.

    attn2.processor.to_{q,k,v,out}_aud.* -> attn2.to_{q,k,v,out.0}.*, in place of text attention under these names.
    """

    def rename(match: re.Match) -> str:
        return "attn2.to_out.0." if match[1] == "out" else f"attn2.to_{match[1]}."

    renamed = {OLD_AUDIO_ATTENTION.sub(rename, name): tensor for name, tensor in weights.items()}
    return renamed | {
        OLD_AUDIO_ATTENTION.sub(rename, name): tensor
        for name, tensor in weights.items()
        if OLD_AUDIO_ATTENTION.search(name)
    }


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def load_weights(
    network: nn.Module,
    paths: list[Path],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    ignored_keys: Mapping[str, str] = MappingProxyType({}),
) -> nn.Module:
    """Gives a network, built on the meta device, its weights; together the files must cover it, and no more.

    Weights go straight to their dtype and device, some 512 MiB at a time: a file is mapped anew for each part, since
    pages of a mapping that were read count as this process's memory until it ends.

    Args:
        network: its parameters are replaced, not copied into.
        paths: files; of a key that several hold, the first counts.
        dtype: of the loaded parameters.
        device: of the loaded parameters.
        ignored_keys: prefix of keys that the files may hold and the network has not -> why.

    Returns:
        `network`, in eval mode.

    Raises:
        InputError: missing, unexpected or misshapen keys, listed; weights that are not finite in `dtype`.
    """
    own = network.state_dict()
    source: dict[str, Path] = {}
    shapes: dict[str, torch.Size] = {}
    is_float: dict[str, bool] = {}
    for path in paths:
        for name, tensor in read_state_dict(path).items():
            if name not in source and not name.startswith(tuple(ignored_keys)):
                source[name], shapes[name], is_float[name] = path, tensor.shape, tensor.is_floating_point()
    problems = {
        "missing": [name for name in own if name not in source],
        "unexpected": [name for name in source if name not in own],
        "misshapen": [
            f"{name} {tuple(shapes[name])} for {tuple(tensor.shape)}"
            for name, tensor in own.items()
            if name in shapes and shapes[name] != tensor.shape
        ],
        "of whole numbers": [name for name in own if name in shapes and not is_float[name]],
    }
    if any(problems.values()):
        found = "; ".join(
            f"{len(names)} {kind}: {', '.join(names[:4])}{', ...' * (len(names) > 4)}"
            for kind, names in problems.items()
            if names
        )
        files = " and ".join(map(str, paths))
        raise InputError(f"{files} not fit for {type(network).__name__}: {found}; another model's file or size?")

    loaded: dict[str, Tensor] = {}
    for path in paths:
        names = [name for name in own if source[name] == path]
        while names:
            weights, num_bytes = read_state_dict(path), 0
            while names and num_bytes < BYTES_PER_MAPPING:
                name = names.pop()
                num_bytes += weights[name].nbytes
                loaded[name] = weights[name].to(device=device, dtype=dtype)
                check_finite(name, loaded[name], f"weights file {path}")
    network.load_state_dict(loaded, assign=True)
    return network.eval()


def check_finite(name: str, tensor: Tensor, where: str) -> None:
    """Raises an InputError if a weight is not finite.

    Args:
        name: of the weight.
        tensor: in the number type that it will be used in.
        where: for the message.
    """
    if tensor.is_floating_point() and tensor.numel() and not all(end.isfinite() for end in tensor.aminmax()):
        raise InputError(f"{where}: {name} is not finite in {str(tensor.dtype).removeprefix('torch.')}")
