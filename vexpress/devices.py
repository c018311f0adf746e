"""Names of devices and of number types, and what stands for them on this machine."""

import torch

from vexpress.errors import InputError

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


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
