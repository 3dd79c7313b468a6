"""What is the same for all CUDA kernels: which tensors they serve, and the emulator that stands in for a card."""

from __future__ import annotations

import functools
import os

import torch

from ..problems import Problem

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def emulator() -> str | None:
    """The library in which the kernels run on the CPU, if one is named."""
    return os.environ.get("FILM_KERNELS_CUDA_EMULATOR") or None


@functools.cache
def _too_old(device: torch.device) -> str | None:
    major, minor = torch.cuda.get_device_capability(device)
    return None if major >= 8 else f"it serves GPUs of compute capability 8.0 and above, not {major}.{minor}"


def why_not(problem: Problem) -> str | None:
    """Why no CUDA kernel can serve tensors of this device and dtype, or None."""
    device = "cpu" if emulator() else "cuda"
    if problem.device.type != device:
        return f"it serves tensors on {device}, not on {problem.device.type}"
    if device == "cuda" and (reason := _too_old(problem.device)) is not None:
        return reason
    if problem.dtype not in _DTYPES:
        return f"it serves float32, bfloat16 and float16, not {problem.dtype}"
    return None
