"""The Triton kernels as a backend."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...activations import why_not_one_bit
from ...problems.conv_film import ConvFilm
from .. import library
from ..base import Backend
from ..gpu_conv_film import GpuConvFilmKernels
from ..vendor import VendorConvFilm
from .availability import DTYPES, why_not_here, why_nowhere
from .norm_backend import TritonNormFilm

_vendor = VendorConvFilm()


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
        # No measurement on a card stands behind these kernels yet, so the automatic choice takes them only where the
        # user's own `autotune()` found them to be faster than the library.
        from . import autotune

        if problem.device.type == "cpu":
            return True
        return not (autotune.is_timing(problem) or autotune.is_measured_to_be_faster(problem))

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

    def forward_and_copy(self, problem, tensors, copied):
        self._compare(
            problem,
            "forward",
            lambda: super(TritonConvFilm, self).forward_and_copy(problem, tensors, copied),
            lambda: _vendor.forward_and_copy(problem, tensors, copied),
        )
        return super().forward_and_copy(problem, tensors, copied)

    def forward(self, problem, tensors, for_backward):
        self._compare(
            problem,
            "forward",
            lambda: super(TritonConvFilm, self).forward(problem, tensors, for_backward),
            lambda: _vendor.forward(problem, tensors, for_backward),
        )
        return super().forward(problem, tensors, for_backward)

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
