"""What stands around a convolution on the CPU, in one pass each way: activation and FiLM of z = conv(input, weight) +
bias, and their gradients. They are norm_film's compiled kernels, of an input that is not normalised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..problems.conv_film import ConvFilm
from .base import Gradients
from .compiled import packed_pass_options


def forward(problem: ConvFilm, z: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    """y, from z (N, K, *out)."""
    y, _ = torch.ops.film_kernels_cpu.norm_forward(
        z, None, None, gamma, beta, *packed_pass_options(problem), problem.channels_last
    )
    return y


def backward(
    problem: ConvFilm, grad: Tensor, z: Tensor, gamma: Tensor | None, beta: Tensor | None, wanted: Sequence[bool]
) -> Gradients:
    """(dz, db, dgamma, dbeta), None where `wanted`, of these four, says so. beta is read in "pre" alone."""
    if not any(wanted):
        return None, None, None, None
    none_kept = z.new_empty(0, 0, dtype=torch.float64 if z.dtype == torch.float64 else torch.float32)
    dz, *others = torch.ops.film_kernels_cpu.norm_backward(
        grad, none_kept, z, None, None, gamma, beta,
        wanted[0], False, *wanted[1:], *packed_pass_options(problem), problem.channels_last,
    )  # fmt: skip
    results = (dz, *others[1:])
    return tuple(result if asked else None for result, asked in zip(results, wanted, strict=True))
