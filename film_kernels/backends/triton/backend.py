"""The Triton kernels as a backend."""

from __future__ import annotations

import torch
from torch import Tensor

from ...activations import why_not_one_bit
from ...problems.conv_film import ConvFilm
from ..base import Backend, Gradients
from ..conv_film import ConvFilmKernels
from ..vendor import VendorConvFilm
from .availability import why_not_here, why_nowhere

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_vendor = VendorConvFilm()


class TritonConvFilm(ConvFilmKernels):
    def why_not(self, problem: ConvFilm) -> str | None:
        if (reason := why_not_here(problem.device)) is not None:
            return reason
        if problem.dtype not in _DTYPES:
            return f"it serves float32, float64, bfloat16 and float16, not {problem.dtype}"
        if problem.dtype == torch.float64 and problem.device.type != "cpu":  # not all compile for it (Triton 3.7)
            return "it serves float64 in the interpreter only, to check derivatives"
        if problem.spatial_rank == 3:
            return "it serves 1d and 2d convolutions, not 3d"
        if problem.groups != 1:
            return f"it serves convolutions of one group, not {problem.groups}"
        if problem.weight_shape[1] == 0:
            return "it serves inputs of at least one channel"
        return why_not_one_bit(problem.activation)

    def is_slow(self, problem: ConvFilm) -> bool:
        # No measurement on a card stands behind these kernels yet, so the automatic choice takes them only where the
        # user's own `autotune()` found them to be faster than the library.
        from . import autotune

        if problem.device.type == "cpu":
            return True
        return not (autotune.is_timing(problem) or autotune.is_measured_to_be_faster(problem))

    def kept_like(self, problem: ConvFilm) -> Tensor:
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

    def forward(self, problem, tensors, keep):
        from . import autotune

        def fused() -> tuple[Tensor, Tensor | None]:
            return self.fused(problem, tensors, keep)

        if autotune.is_timing(problem) and _vendor.why_not(problem) is None:
            fused()  # times the entries first
            autotune.compare(problem, "forward", fused, lambda: _vendor.forward(problem, tensors, keep))
        return fused()

    def fused(self, problem, tensors, keep_bits):
        """(y, bits), the bits None unless `keep_bits`; without them of every activation."""
        from .autotune import run
        from .forward import forward

        kept = self.kept_like(problem) if keep_bits else None
        return run(problem, "forward", lambda entry: forward(problem, tensors, kept, entry)), kept

    def after(self, problem, raw, bias, gamma, beta, out):
        """y into `out`, which may be `raw`, from the library's convolution without the bias, in one pass."""
        from .vendor_pass import finish_forward

        return finish_forward(problem, raw, bias, gamma, beta, out)

    def before(self, problem, grad, raw, bias, gamma, beta, wanted):
        """(dz, db, dgamma, dbeta) from `grad` and the library's convolution without the bias, in one pass."""
        from .vendor_pass import start_backward

        return start_backward(problem, grad, raw, bias, gamma, beta, wanted)

    def recompute(self, problem, grad, tensors, wanted):
        """(dz, db, dgamma, dbeta) with the convolution computed once more, in one kernel."""
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

    def backward(self, problem, grad, kept, tensors, wanted):
        from . import autotune

        def fused() -> Gradients:
            return ConvFilmKernels.backward(self, problem, grad, kept, tensors, wanted)

        if autotune.is_timing(problem) and _vendor.why_not(problem) is None:
            fused()  # times the entries first
            _, z = _vendor.forward(problem, tensors, True)
            autotune.compare(problem, "backward", fused, lambda: _vendor.backward(problem, grad, z, tensors, wanted))
        return fused()


class Triton(Backend):
    name = "triton"
    kernels = (TritonConvFilm(),)

    def unavailable(self) -> str | None:
        return why_nowhere()
