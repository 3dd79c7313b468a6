"""The library's convolution (oneDNN, cuDNN, MIOpen, ...) and passes after it: serves what the fused kernels do not.

It keeps `z`, as plain PyTorch keeps the activation: from the bits alone the library's weight gradient, which is summed
over the samples, cannot give dgamma. On a GPU with Triton what comes after the convolution is one pass, and what comes
before its backward another (`z` is then kept without the bias); elsewhere, and for smooth activations, they are
PyTorch's own operations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from ..activations import ACTIVATIONS
from ..problems.conv_film import ConvFilm
from .base import Backend, Kernels
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


def _convolution_backward(
    problem: ConvFilm, dz: Tensor, input: Tensor, weight: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(dx, dW, db) of the library's convolution from the gradient of its result, None where `wanted` says so."""
    padded, padding = reference.symmetric(problem, input)
    grad_input, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        dz, padded, weight, [problem.out_channels], problem.stride, padding, problem.dilation,
        False, (0,) * problem.spatial_rank, problem.groups, list(wanted),
    )  # fmt: skip
    if grad_input is not None and padded is not input:
        grad_input = F.pad(grad_input, [-side for pair in reversed(problem.padding) for side in pair])
    return grad_input, grad_weight, grad_bias


def has_one_pass(problem: ConvFilm) -> bool:
    """Whether Triton's passes (triton/vendor_pass.py) serve around the convolution of `problem`."""
    if problem.device.type == "cpu" or problem.spatial_rank == 3 or not ACTIVATIONS[problem.activation].one_bit:
        return False
    return why_nowhere() is None and why_not_here(problem.device) is None


class VendorConvFilm(Kernels):
    record = ConvFilm

    def why_not(self, problem: ConvFilm) -> str | None:
        if problem.dtype.is_complex:
            return f"{problem.dtype} goes through the plain formula"
        if 0 in problem.out_size:
            return "the library's convolution refuses an output of size 0"
        return None

    def kept_like(self, problem: ConvFilm) -> Tensor:
        return torch.empty(
            problem.out_shape, dtype=problem.dtype, device=problem.device, memory_format=problem.memory_format
        )

    def reads(self, problem, wanted):
        """v is made again from z: of z without the bias where there is one pass, and by FiLM where it stands before."""
        return has_one_pass(problem), problem.film_position == "pre"

    def forward(self, problem, tensors, keep):
        input, weight, bias, gamma, beta = tensors
        if has_one_pass(problem):
            from .triton.vendor_pass import finish_forward

            raw = reference.convolution(problem, input, weight, None).contiguous(memory_format=problem.memory_format)
            y = finish_forward(problem, raw, bias, gamma, beta, out=torch.empty_like(raw) if keep else raw)
            return y, (raw if keep else None)
        z = reference.convolution(problem, input, weight, bias).contiguous(memory_format=problem.memory_format)
        activation = ACTIVATIONS[problem.activation]
        modulated = gamma is not None or beta is not None or problem.gamma_offset != 0.0
        v, spare = z, not keep  # whether v is ours to write over
        if problem.film_position == "post" and problem.activation != "none":
            v, spare = activation.apply(v, problem.negative_slope, inplace=spare), True
        if modulated:
            v, spare = _film(problem, v, gamma, beta, out=v if spare else None), True
        if problem.film_position == "pre" and problem.activation != "none":
            v, spare = activation.apply(v, problem.negative_slope, inplace=spare), True
        return (v if spare else v.clone()), (z if keep else None)

    def backward(self, problem, grad, kept, tensors, wanted):
        input, weight, bias, gamma, beta = tensors
        if has_one_pass(problem):
            from .triton.vendor_pass import start_backward

            sums_wanted = (wanted[0] or wanted[1], *wanted[2:])
            dz, *sums = start_backward(problem, grad, kept, bias, gamma, beta, sums_wanted)
            if dz is None:
                return None, None, *sums
            return *_convolution_backward(problem, dz, input, weight, (*wanted[:2], False))[:2], *sums
        activation = ACTIVATIONS[problem.activation]
        post = problem.film_position == "post"
        v = kept if post else _film(problem, kept, gamma, beta, out=None)
        u = activation.gradient(grad, v, problem.negative_slope)
        positions = tuple(range(2, grad.dim()))
        grad_gamma = grad_beta = None
        if wanted[3]:
            product = grad * activation.apply(kept, problem.negative_slope) if post else u * kept
            grad_gamma = product.sum(positions)
        if wanted[4]:
            grad_beta = (grad if post else u).sum(positions)
        if not any(wanted[:3]):
            return None, None, None, grad_gamma, grad_beta
        scale = _scale(problem, gamma)
        dz = u if isinstance(scale, float) and scale == 1.0 else u * scale
        return *_convolution_backward(problem, dz, input, weight, wanted[:3]), grad_gamma, grad_beta


class Vendor(Backend):
    name = "vendor"
    kernels = (VendorConvFilm(), VendorNormFilm())

    def unavailable(self) -> str | None:
        return None
