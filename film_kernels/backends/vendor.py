"""The library's convolution (oneDNN, cuDNN, MIOpen, ...) and passes after it: serves what the fused kernels do not.

With `keep="fast"` it keeps `z`, as plain PyTorch keeps the activation; otherwise nothing, and `z` is computed once more
(from bits alone the library's weight gradient, which is summed over the samples, could not give dgamma). On a GPU with
Triton what comes after the convolution is one pass, and what comes before its backward another (`z` is then kept
without the bias); so they are on a CPU with the compiled library, whose convolution adds the bias for nothing.
Elsewhere they are PyTorch's own operations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..activations import ACTIVATIONS
from ..problems.conv_film import ConvFilm
from . import cpu_library, cpu_pass, library
from .base import Backend, Gradients, Kernels
from .triton.availability import why_not_here, why_nowhere
from .vendor_norm import VendorNormFilm


def _per_channel(problem: ConvFilm, factor: Tensor) -> Tensor:
    return factor.reshape(*factor.shape, *(1,) * problem.spatial_rank)


def _scale(problem: ConvFilm, gamma: Tensor | None) -> Tensor | float:
    """gamma + gamma_offset as it multiplies an (N, K, *out) tensor."""
    if gamma is None:
        return 1.0 + problem.gamma_offset
    return _per_channel(problem, gamma + problem.gamma_offset if problem.gamma_offset else gamma)


def _film(problem: ConvFilm, v: Tensor, gamma: Tensor | None, beta: Tensor | None, out: Tensor | None) -> Tensor:
    """scale * v + beta in one pass over v, into `out` where given."""
    scale = _scale(problem, gamma)
    if beta is None:
        return torch.mul(v, scale, out=out)
    if isinstance(scale, Tensor):
        return torch.addcmul(_per_channel(problem, beta), v, scale, out=out)
    return torch.add(v * scale if scale != 1.0 else v, _per_channel(problem, beta), out=out)


def has_one_pass(problem: ConvFilm) -> bool:
    """Whether Triton's passes (triton/vendor_pass.py) serve around the convolution of `problem`."""
    if problem.device.type == "cpu" or problem.spatial_rank == 3:
        return False
    return why_nowhere() is None and why_not_here(problem.device) is None


def has_compiled_pass(problem: ConvFilm) -> bool:
    """Whether the CPU library's passes (cpu_pass.py) serve around the convolution of `problem`."""
    return cpu_library.why_not(problem) is None and cpu_library.unavailable() is None


def _forward_is_compiled(problem: ConvFilm, spare: bool) -> bool:
    """Whether the CPU library's pass serves and, by measurements (bench/NOTES.md), is faster than PyTorch's own
    operations: not where these have no more to compute than it and write over z, with `spare`, or are a single one
    themselves. In backward it always is."""
    if not has_compiled_pass(problem) or not (_modulates(problem) or problem.activation != "none"):
        return False
    if problem.dtype.itemsize < 4 or not ACTIVATIONS[problem.activation].one_bit:
        return True
    return not spare and problem.activation != "none"


class VendorConvFilm(Kernels):
    record = ConvFilm

    def why_not(self, problem: ConvFilm) -> str | None:
        if problem.dtype.is_complex:
            return f"{problem.dtype} goes through the plain formula"
        if 0 in problem.out_size:
            return "the library's convolution refuses an output of size 0"
        return None

    def kept_like(self, problem: ConvFilm) -> Tensor:
        return library.result_like(problem) if library.keeps_result(problem) else library.nothing_like(problem)

    def reads(self, problem, wanted):
        if library.is_only_shifted(problem):
            return False, False
        # the bias, where the convolution's result is kept without it, or computed once more
        return has_one_pass(problem) or not library.keeps_result(problem), problem.film_position == "pre"

    def forward(self, problem, tensors, for_backward):
        return self._forward(problem, tensors, for_backward, (None, None))

    def forward_and_copy(self, problem, tensors, copied):
        if not has_one_pass(problem):
            return super().forward_and_copy(problem, tensors, copied)
        copies = tuple(
            None if tensor is None else torch.empty_like(tensor, memory_format=torch.contiguous_format)
            for tensor in copied
        )
        return *self._forward(problem, tensors, True, copies), [*copies]

    def _forward(self, problem, tensors, for_backward, copies):
        input, weight, bias, gamma, beta = tensors
        keeps = for_backward and library.keeps_result(problem)
        if has_one_pass(problem):
            from .triton.vendor_pass import finish_forward

            result = library.convolution(problem, input, weight, None)
            out = torch.empty_like(result) if keeps else result
            y = finish_forward(problem, result, bias, gamma, beta, out, copies)
        else:
            result = library.convolution(problem, input, weight, bias)
            if _forward_is_compiled(problem, spare=not keeps):
                y = cpu_pass.forward(problem, result, gamma, beta)
            else:
                y = _activation_and_film(problem, result, gamma, beta, spare=not keeps)
        if not for_backward:
            return y, None
        return y, (result if keeps else library.nothing_like(problem))

    def backward(self, problem, grad, kept, tensors, wanted):
        input, weight, bias, gamma, beta = tensors
        if library.is_only_shifted(problem):
            return library.gradients_where_only_shifted(problem, grad, input, weight, wanted)
        one_pass = has_one_pass(problem)
        if not library.keeps_result(problem):
            kept = library.convolution(problem, input, weight, None if one_pass else bias)
        asked = (wanted[0] or wanted[1], *wanted[2:])
        if one_pass:
            from .triton.vendor_pass import start_backward

            dz, *sums = start_backward(problem, grad, kept, bias, gamma, beta, asked)
        elif has_compiled_pass(problem):
            dz, *sums = cpu_pass.backward(problem, grad, kept, gamma, beta, asked)
        else:
            dz, *sums = _before_the_convolution(problem, grad, kept, gamma, beta, asked)
        return *library.gradients(problem, dz, input, weight, wanted[:2]), *sums


def _modulates(problem: ConvFilm) -> bool:
    return problem.has_gamma or problem.has_beta or problem.gamma_offset != 0.0


def _activation_and_film(
    problem: ConvFilm, z: Tensor, gamma: Tensor | None, beta: Tensor | None, spare: bool
) -> Tensor:
    """y by PyTorch's own operations; with `spare`, z may be written over."""
    activation, post = ACTIVATIONS[problem.activation], problem.film_position == "post"
    modulated = _modulates(problem)
    v, kept = z, not spare
    if post and problem.activation != "none":
        v, spare = activation.apply(v, problem.negative_slope, inplace=spare), True
    if modulated:
        v, spare = _film(problem, v, gamma, beta, out=v if spare else None), True
    if not post and problem.activation != "none":
        v = activation.apply(v, problem.negative_slope, inplace=spare)
    return v.clone() if kept and v is z else v


def _before_the_convolution(
    problem: ConvFilm,
    grad: Tensor,
    z: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    wanted: Sequence[bool],
) -> Gradients:
    """(dz, db, dgamma, dbeta) by PyTorch's own operations, None where `wanted` says so."""
    activation = ACTIVATIONS[problem.activation]
    post = problem.film_position == "post"
    v = z if post else _film(problem, z, gamma, beta, out=None)
    u = activation.gradient(grad, v, problem.negative_slope)
    positions = tuple(range(2, grad.dim()))
    dz = grad_bias = grad_gamma = grad_beta = None
    if wanted[0] or wanted[1]:
        scale = _scale(problem, gamma)
        dz = u if isinstance(scale, float) and scale == 1.0 else u * scale
    if wanted[1]:
        grad_bias = dz.sum((0, *positions))  # type: ignore[union-attr]
    if wanted[2]:
        product = grad * activation.apply(z, problem.negative_slope) if post else u * z
        grad_gamma = product.sum(positions)
    if wanted[3]:
        grad_beta = (grad if post else u).sum(positions)
    return dz, grad_bias, grad_gamma, grad_beta


class Vendor(Backend):
    name = "vendor"
    kernels = (VendorConvFilm(), VendorNormFilm())

    def unavailable(self) -> str | None:
        return None
