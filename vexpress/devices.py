"""Names of devices and of number types, and what stands for them on this machine."""

import os

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
    if gpu_id < 0:
        raise InputError("must be 0 or more", "gpu_id", gpu_id)
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise InputError("no CUDA device is available to this PyTorch build; use `device` cpu", "device", "cuda")
        if not 0 <= gpu_id < torch.cuda.device_count():
            raise InputError(f"this machine has CUDA devices 0 to {torch.cuda.device_count() - 1}", "gpu_id", gpu_id)
        return torch.device("cuda", gpu_id)
    if name == "mps" and not torch.backends.mps.is_available():
        raise InputError("no Apple GPU is available; use `device` cpu", "device", "mps")
    if name not in ("mps", "cpu"):
        raise InputError("allowed are cuda, cpu and mps", "device", name)
    return torch.device(name)


def resolve_dtype(name: str | None, device: torch.device | None = None) -> torch.dtype:
    """Turns "fp16", "bf16" or "fp32" into a dtype; None is fp16 on a CUDA `device`, and else fp32.

    Raises:
        InputError: any other name.
    """
    name = name or ("fp16" if device is not None and device.type == "cuda" else "fp32")
    if name not in DTYPES:
        raise InputError(f"allowed are {', '.join(DTYPES)}", "dtype", name)
    return DTYPES[name]


def process_number(variable: str, default: int) -> int:
    """A number of this process that torchrun puts into the environment, such as RANK or WORLD_SIZE.

    Raises:
        InputError: the variable holds no such number.
    """
    text = os.environ.get(variable, str(default))
    if not text.isdecimal():
        raise InputError(
            f"{variable}={text} in the environment: must be a whole number; start with torchrun, or unset it"
        )
    return int(text)
