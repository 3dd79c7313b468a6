"""The kernels written once in Triton: NVIDIA, AMD and Intel GPUs, and the CPU under TRITON_INTERPRET=1.

triton is optional; nothing here imports it before a Problem is served.
"""

from __future__ import annotations

import functools
import importlib.util
import os

import torch
from torch import Tensor

from ...activations import why_not_one_bit
from ...problem import Problem
from ..base import Backend, Gradients
from ..vendor import Vendor

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_vendor = Vendor()
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


def why_not_here(device: torch.device) -> str | None:
    """Why no kernel of this package can run on `device`, where Triton is installed; or None."""
    if device.type not in _GPUS and not (device.type == "cpu" and _interpreted()):
        return f"it serves tensors on a GPU (cuda, xpu), not on {device.type}"
    return _too_old(device) if device.type == "cuda" else None


class Triton(Backend):
    name = "triton"

    def unavailable(self) -> str | None:
        if _missing() is not None:
            return _missing()
        if _interpreted() or torch.cuda.is_available() or torch.xpu.is_available():
            return None
        return "PyTorch sees no GPU (and TRITON_INTERPRET=1 is not set, with which it runs on the CPU, slowly)"

    def why_not(self, problem: Problem) -> str | None:
        if (reason := why_not_here(problem.device)) is not None:
            return reason
        if problem.dtype not in _DTYPES:
            return f"it serves float32, float64, bfloat16 and float16, not {problem.dtype}"
        if (
            problem.dtype == torch.float64 and problem.device.type != "cpu"
        ):  # not all of the kernels compile for it (Triton 3.7)
            return "it serves float64 in the interpreter only, to check derivatives"
        if problem.spatial_rank == 3:
            return "it serves 1d and 2d convolutions, not 3d"
        if problem.groups != 1:
            return f"it serves convolutions of one group, not {problem.groups}"
        if problem.weight_shape[1] == 0:
            return "it serves inputs of at least one channel"
        return why_not_one_bit(problem.activation)

    def is_slow(self, problem: Problem) -> bool:
        # No measurement on a card stands behind these kernels yet, so the automatic choice takes them only where the
        # user's own `autotune()` found them to be faster than the library.
        from . import autotune

        if problem.device.type == "cpu":
            return True
        return not (autotune.is_timing(problem) or autotune.is_measured_to_be_faster(problem))

    def kept_like(self, problem: Problem) -> Tensor:
        """The bits, a byte for eight channels of a position: (N, positions, ceil(K / 8)) for channels_last,
        (N, ceil(K / 8), positions) otherwise; none without an activation."""
        if problem.activation == "none":
            return torch.empty(0, dtype=torch.uint8, device=problem.device)
        positions = 1
        for size in problem.out_size:
            positions *= size
        planes = (problem.out_channels + 7) // 8
        inner = (positions, planes) if problem.channels_last else (planes, positions)
        return torch.empty(problem.batch, *inner, dtype=torch.uint8, device=problem.device)

    def reads(self, problem, wanted):
        """While it is timed against `vendor`, all that this may read."""
        from . import autotune

        return (True, True) if autotune.is_timing(problem) else super().reads(problem, wanted)

    def forward(self, problem, input, weight, bias, gamma, beta, keep):
        from . import autotune
        from .forward import forward

        kept = self.kept_like(problem) if keep else None
        tensors = (input, weight, bias, gamma, beta)

        def fused() -> Tensor:
            return autotune.run(problem, "forward", lambda entry: forward(problem, *tensors, kept, entry))

        if autotune.is_timing(problem) and _vendor.why_not(problem) is None:
            fused()  # times the entries first
            autotune.compare(problem, "forward", fused, lambda: _vendor.forward(problem, *tensors, keep))
        return fused(), kept

    def grad_input(self, problem, grad, kept, weight, gamma):
        from .autotune import run
        from .grad_input import grad_input

        return run(problem, "grad_input", lambda entry: grad_input(problem, grad, kept, weight, gamma, entry))

    def grad_weight(self, problem, grad, kept, input, weight, bias, gamma, wanted):
        from .autotune import run
        from .grad_weight import grad_weight

        arguments = (problem, grad, kept, input, weight, bias, gamma, wanted)
        return run(problem, "grad_weight", lambda entry: grad_weight(*arguments, entry))

    def backward(self, problem, grad, kept, input, weight, bias, gamma, beta, wanted):
        from . import autotune

        def fused() -> Gradients:
            return Backend.backward(self, problem, grad, kept, input, weight, bias, gamma, beta, wanted)

        if autotune.is_timing(problem) and _vendor.why_not(problem) is None:
            fused()  # times the entries first
            _, z = _vendor.forward(problem, input, weight, bias, gamma, beta, True)
            tensors = (input, weight, bias, gamma, beta)
            autotune.compare(problem, "backward", fused, lambda: _vendor.backward(problem, grad, z, *tensors, wanted))
        return fused()
