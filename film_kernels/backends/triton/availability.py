"""Where kernels written in Triton can run."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_GPUS = ("cuda", "xpu")  # ROCm's GPUs are "cuda" to PyTorch


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _missing() -> str | None:
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin is not None:  # not just a folder of that name
        return None
    return "the package triton is not installed (pip install triton)"


@functools.cache
def _too_old(device: torch.device) -> str | None:
    if torch.version.hip is not None or not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return None if major >= 8 else f"it serves NVIDIA GPUs of compute capability 8.0 and above, not {major}.{minor}"


def why_nowhere() -> str | None:
    """Why no kernel of this package can run on any device, or None."""
    if _missing() is not None:
        return _missing()
    if _interpreted() or torch.cuda.is_available() or torch.xpu.is_available():
        return None
    return "PyTorch sees no GPU (and TRITON_INTERPRET=1 is not set, with which it runs on the CPU, slowly)"


def why_not_here(device: torch.device) -> str | None:
    """Why no kernel of this package can run on `device`, where Triton is installed; or None."""
    if device.type not in _GPUS and not (device.type == "cpu" and _interpreted()):
        return f"it serves tensors on a GPU (cuda, xpu), not on {device.type}"
    return _too_old(device) if device.type == "cuda" else None
