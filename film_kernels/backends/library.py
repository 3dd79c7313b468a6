"""The library's convolution (oneDNN, cuDNN, MIOpen, ...) as the backends call it, and its two gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from ..problems.conv_film import ConvFilm
from ..problems.norm_film import sums_of
from .base import Gradients


def convolution(problem: ConvFilm, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """conv(input, weight) + bias, (N, K, *out), dense in the problem's memory format."""
    return reference.convolution(problem, input, weight, bias).contiguous(memory_format=problem.memory_format)


def gradients(
    problem: ConvFilm, dz: Tensor | None, input: Tensor, weight: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """(dx, dW) from the gradient of the convolution's result, None where `wanted`, of these two, says so."""
    if dz is None or not any(wanted):
        return None, None
    if 0 in dz.shape[2:]:  # which the library refuses
        return tuple(torch.zeros_like(t) if asked else None for t, asked in zip((input, weight), wanted, strict=True))  # type: ignore[return-value]
    padded, padding = reference.symmetric(problem, input)
    grad_input, grad_weight, _ = torch.ops.aten.convolution_backward(
        dz, padded, weight, [problem.out_channels], problem.stride, padding, problem.dilation,
        False, (0,) * problem.spatial_rank, problem.groups, [*wanted, False],
    )  # fmt: skip
    if grad_input is not None and padded is not input:
        grad_input = F.pad(grad_input, [-side for pair in reversed(problem.padding) for side in pair])
    return grad_input, grad_weight


def keeps_result(problem: ConvFilm) -> bool:
    """Whether the convolution's result is kept for backward, where `problem` is served by it."""
    return problem.keep == "fast" and not is_only_shifted(problem)


def result_like(problem: ConvFilm) -> Tensor:
    """An empty tensor of the shape, dtype and strides of the convolution's result."""
    return torch.empty(
        problem.out_shape, dtype=problem.dtype, device=problem.device, memory_format=problem.memory_format
    )


def nothing_like(problem: ConvFilm) -> Tensor:
    """What stands for what was kept where that is nothing."""
    return torch.empty(0, dtype=torch.uint8, device=problem.device)


def is_only_shifted(problem: ConvFilm) -> bool:
    """Whether no more than a number stands behind the convolution that scales it, and a shift: its gradients need no
    result of the convolution, whatever may be kept."""
    return problem.activation == "none" and not problem.has_gamma


def gradients_where_only_shifted(
    problem: ConvFilm, grad: Tensor, input: Tensor, weight: Tensor, wanted: Sequence[bool]
) -> Gradients:
    """All five gradients, None where `wanted` says so; of gamma, which is not there, always."""
    scale = 1.0 + problem.gamma_offset
    dz = None
    if wanted[0] or wanted[1]:
        dz = grad if scale == 1.0 else grad * scale
    sums = grad_bias = None
    if wanted[2] or wanted[4]:
        sums = grad.sum(tuple(range(2, grad.dim())), dtype=sums_of(grad.dtype))
    if wanted[2]:
        grad_bias = (sums.sum(0) * scale).to(grad.dtype)  # type: ignore[union-attr]
    grad_beta = sums.to(grad.dtype) if wanted[4] else None  # type: ignore[union-attr]
    return *gradients(problem, dz, input, weight, wanted[:2]), grad_bias, None, grad_beta
