"""States that FSDP shards over processes, in torch.distributed.checkpoint's format; no pickle in them is executed."""

import contextlib
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType

from vexpress.errors import InputError, first_line
from vexpress.weights.bounds import check_archive

METADATA_SUFFIX = ".metadata"  # of a name that may begin with a process's number
WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
HARMLESS = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))},
    "pathlib": {"PosixPath", "PurePosixPath", "Path"},
    "collections": {"OrderedDict"},
}
"""Module -> what the metadata of a sharded state may name."""


def shard_over_cpus(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    """Turns FSDP on for processes without GPUs: torch can do it, accelerate offers it for GPUs only."""
    PartialState().distributed_type = accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin


@contextlib.contextmanager
def harmless(checkpoint: Path) -> Iterator[None]:
    """Keeps torch from executing what a checkpoint's files may name, and from unpacking bombs, while it is read.

    torch.distributed.checkpoint unpickles its metadata, which are looked through here before, and asks `torch.load` for
    everything in small values, which the environment forbids.

    Raises:
        InputError: metadata name what no checkpoint needs, an archive is packed, or there is a link, behind which
            anything may be.
        zipfile.BadZipFile: an archive is damaged.
    """
    for path in checkpoint.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InputError(f"checkpoint {checkpoint}: {path.relative_to(checkpoint)} is a link or device; copy it")
        if path.is_file():
            check_archive(path)
        if not path.name.endswith(METADATA_SUFFIX):
            continue
        try:
            with open(path, "rb") as file:
                _MetadataReader(file).load()
        except Exception as error:  # of a file that is no pickle, pickle raises anything
            name = path.relative_to(checkpoint)
            raise InputError(f"checkpoint {checkpoint}: {name} is no metadata: {first_line(error)}") from error
    before = os.environ.get(WEIGHTS_ONLY)
    os.environ[WEIGHTS_ONLY] = "1"
    try:
        yield
    finally:
        del os.environ[WEIGHTS_ONLY]
        if before is not None:
            os.environ[WEIGHTS_ONLY] = before


class _MetadataReader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if name not in HARMLESS.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)
