"""What stands around a convolution on the CPU, in one pass each way: activation and FiLM of z = conv(input, weight) +
bias, and their gradients. They are norm_film's compiled kernels, of an input that is not normalised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..problems.conv_film import ConvFilm
from ..problems.norm_film import sums_of
from .base import AS_ROWS, Gradients, asked_for
from .compiled import packed_pass_options


def forward(
    problem: ConvFilm,
    z: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """y, from z (N, K, *out), or from weight * z + bias, of a number a channel each."""
    y, _ = torch.ops.film_kernels_cpu.norm_forward(
        z, weight, bias, gamma, beta, *packed_pass_options(problem), problem.channels_last
    )
    return y


def backward(
    problem: ConvFilm, grad: Tensor, z: Tensor, gamma: Tensor | None, beta: Tensor | None, wanted: Sequence[bool]
) -> Gradients:
    """(dz, db, dgamma, dbeta), None where `wanted`, of these four, says so. beta is read in "pre" alone."""
    if not any(wanted):
        return None, None, None, None
    found = gradients(problem, grad, z, (None, None, gamma, beta), (wanted[0], False, *wanted[1:]))
    return found[0], *found[2:]


def gradients(
    problem: ConvFilm,
    grad: Tensor,
    z: Tensor,
    factors: Sequence[Tensor | None],
    wanted: Sequence[bool],
    sizes: Sequence[Sequence[int]] = AS_ROWS,
) -> Gradients:
    """Those of z and of `factors`, weight, bias, gamma and beta, as `Kernels.prepared_backward` has `sizes`."""
    none_kept = z.new_empty(0, 0, dtype=sums_of(z.dtype))
    found = torch.ops.film_kernels_cpu.norm_backward(
        grad, none_kept, z, *factors, *wanted, *packed_pass_options(problem), problem.channels_last, *sizes
    )
    return asked_for(found, wanted)
