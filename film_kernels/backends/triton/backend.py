"""The Triton kernels as a backend."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ...activations import ACTIVATIONS, why_not_one_bit
from ...problems.conv_film import ConvFilm
from .. import library
from ..base import Backend
from ..gpu_conv_film import GpuConvFilmKernels
from ..vendor import VendorConvFilm
from .availability import DTYPES, why_not_here, why_nowhere
from .norm_backend import TritonNormFilm

_FEW = 4  # input channels: memory is the bound
_TILE = 64  # positions and channels of a small tile
_vendor = VendorConvFilm()


def _is_faster(problem: ConvFilm) -> bool:
    """Whether an NVIDIA H200 was faster than with the library's convolution and one pass after it: in 16 bits and
    channels_last forward took 0.29 to 1.0 of its time, but for a map so small (600 positions, 512 channels) that its
    tiles leave multiprocessors without work. A training step takes as long, except with bits."""
    from . import launch

    if problem.dtype.itemsize != 2 or not problem.channels_last or launch.gpu(problem.device) != "nvidia":
        return False
    positions = problem.batch * math.prod(problem.out_size)
    tiles = launch.cdiv(positions, _TILE) * launch.cdiv(problem.out_channels, _TILE)
    few = problem.input_shape[1] <= _FEW
    return tiles >= launch.multiprocessors(problem.device) and (few or problem.keep != "bits")


class TritonConvFilm(GpuConvFilmKernels):
    def why_not(self, problem: ConvFilm) -> str | None:
        if (reason := why_not_here(problem.device)) is not None:
            return reason
        if problem.dtype not in DTYPES:
            return f"it serves float32, float64, bfloat16 and float16, not {problem.dtype}"
        if problem.dtype == torch.float64 and problem.device.type != "cpu":  # not all compile for it (Triton 3.7)
            return "it serves float64 in the interpreter only, to check derivatives"
        if problem.spatial_rank == 3:
            return "it serves 1d and 2d convolutions, not 3d"
        if problem.groups != 1:
            return f"it serves convolutions of one group, not {problem.groups}"
        if problem.weight_shape[1] == 0:
            return "it serves inputs of at least one channel"
        return why_not_one_bit(problem.activation) if problem.keep == "bits" else None

    def is_slow(self, problem: ConvFilm) -> bool:
        from . import autotune

        if problem.device.type == "cpu":
            return True
        if autotune.is_timing(problem) or autotune.is_measured_to_be_faster(problem):
            return False
        return not (autotune.is_untimed(problem) and _is_faster(problem))

    def as_kept(self, problem: ConvFilm) -> ConvFilm:
        """On an H200 a training step with 3 channels in bfloat16 took 0.51 of the time with bits."""
        few = problem.input_shape[1] <= _FEW and problem.dtype.itemsize == 2 and problem.channels_last
        if problem.keep == "fast" and few and ACTIVATIONS[problem.activation].one_bit:
            return problem._replace(keep="bits")
        return problem

    def bits_like(self, problem: ConvFilm) -> Tensor:
        """A byte for eight channels of a position: (N, positions, ceil(K / 8)) for channels_last, (N, ceil(K / 8),
        positions) otherwise; none without an activation."""
        if problem.activation == "none":
            return library.nothing_like(problem)
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

    def _forward(self, problem, tensors, for_backward, copies):
        self._compare(
            problem,
            "forward",
            lambda: super(TritonConvFilm, self)._forward(problem, tensors, for_backward, copies),
            lambda: _vendor.forward(problem, tensors, for_backward),
        )
        return super()._forward(problem, tensors, for_backward, copies)

    def backward(self, problem, grad, kept, tensors, wanted):
        from . import autotune

        if autotune.is_timing(problem) and _vendor.why_not(problem) is None:
            _, its_kept = _vendor.forward(problem, tensors, True)
            self._compare(
                problem,
                "backward",
                lambda: super(TritonConvFilm, self).backward(problem, grad, kept, tensors, wanted),
                lambda: _vendor.backward(problem, grad, its_kept, tensors, wanted),
            )
        return super().backward(problem, grad, kept, tensors, wanted)

    def _compare(self, problem: ConvFilm, part: str, ours: Callable[[], object], vendor: Callable[[], object]) -> None:
        """Time a pass against the library's, where the user wants it."""
        from . import autotune

        if autotune.is_timing(problem) and _vendor.why_not(problem) is None:
            ours()  # times the entries first
            autotune.compare(problem, part, ours, vendor)

    def fused(self, problem, tensors, with_bits, bias_copy=None):
        from .autotune import run
        from .forward import forward

        bits = self.bits_like(problem) if with_bits else None
        return run(problem, "forward", lambda entry: forward(problem, tensors, bits, entry, bias_copy)), bits

    def after(self, problem, result, bias, gamma, beta, out, copies=(None, None)):
        from .vendor_pass import finish_forward

        return finish_forward(problem, result, bias, gamma, beta, out, copies)

    def before(self, problem, grad, result, bias, gamma, beta, wanted):
        from .vendor_pass import start_backward

        return start_backward(problem, grad, result, bias, gamma, beta, wanted)

    def recompute(self, problem, grad, tensors, wanted):
        from .autotune import run
        from .recompute import recompute

        return run(problem, "recompute", lambda entry: recompute(problem, grad, tensors, wanted, entry))

    def grad_input(self, problem, grad, kept, weight, gamma):
        from .autotune import run
        from .grad_input import grad_input

        return run(problem, "grad_input", lambda entry: grad_input(problem, grad, kept, weight, gamma, entry))

    def grad_weight(self, problem, grad, kept, tensors, wanted):
        from .autotune import run
        from .grad_weight import grad_weight

        return run(problem, "grad_weight", lambda entry: grad_weight(problem, grad, kept, tensors, wanted, entry))


class Triton(Backend):
    name = "triton"
    kernels = (TritonConvFilm(), TritonNormFilm())

    def unavailable(self) -> str | None:
        return why_nowhere()
