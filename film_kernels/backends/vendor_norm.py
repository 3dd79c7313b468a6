"""norm_film by the library's sums and passes after them: serves what the fused kernels do not, and keeps as little.

The formulas are those of the kernels. The input is seen as (N, G, C/G, *spatial) for groups of channels, and as it is
for all others, so that statistics and factors broadcast over it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..activations import ACTIVATIONS
from ..moments import means_and_variances, sums
from ..problems.norm_film import NO_NORM, NormFilm
from ..reference.broadcast import over_positions
from .base import Gradients
from .norm_film import NormFilmKernels

Number = Tensor | float


class _Seen:
    """A problem's tensors in the shapes of the formulas, in the dtype of sums."""

    def __init__(self, problem: NormFilm) -> None:
        self.problem, rank = problem, len(problem.input_shape)
        if problem.norm == "group":
            self.normalised = tuple(range(2, rank + 1))
        elif problem.norm == "batch":
            self.normalised = tuple(d for d in range(rank) if d != 1)
        else:
            self.normalised = (problem.channel_dim % rank,)
        self.positions = tuple(d for d in range(1, rank) if d != problem.channel_dim % rank)

    def wide(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.problem.accumulates_in)

    def factor(self, tensor: Tensor | None, missing: float) -> Number:
        if tensor is None:
            return missing
        return over_positions(self.wide(tensor), len(self.problem.input_shape), self.problem.channel_dim)

    def in_groups(self, tensor: Tensor) -> Tensor:
        """As the statistics broadcast over it, and back by `whole`."""
        if self.problem.norm != "group":
            return tensor
        groups = self.problem.num_groups or 1
        return tensor.unflatten(1, (groups, self.problem.channels // groups))

    def whole(self, tensor: Tensor) -> Tensor:
        return tensor.flatten(1, 2) if self.problem.norm == "group" else tensor

    def over_groups(self, row: Tensor) -> Tensor:
        """A row of the statistics as it broadcasts."""
        sizes = self.in_groups(row.new_empty(1).expand(self.problem.input_shape)).shape
        return row.reshape([1 if d in self.normalised else size for d, size in enumerate(sizes)])

    def statistics(self, x: Tensor) -> Tensor:
        norm, x = self.problem.norm, self.in_groups(x)
        if norm == NO_NORM:
            return x.new_empty(self.problem.statistics_shape)
        if norm in ("rms", "l2"):
            (dim,) = self.normalised
            row = x.square().mean(dim) if norm == "rms" else torch.linalg.vector_norm(x, dim=dim)
            return row.reshape(self.problem.statistics_shape)
        return means_and_variances(x, self.normalised, self.problem.group_size)

    def rstd(self, statistics: Tensor) -> Tensor:
        last = self.over_groups(statistics[-1])
        if self.problem.norm == "l2":
            return last.clamp_min(self.problem.eps).reciprocal()
        return torch.rsqrt(last + self.problem.eps)

    def xhat(self, x: Tensor, statistics: Tensor) -> Tensor:
        if self.problem.norm == NO_NORM:
            return x
        x = self.in_groups(x)
        if len(statistics) == 2:
            x = x - self.over_groups(statistics[0])
        return self.whole(x * self.rstd(statistics))


class VendorNormFilm(NormFilmKernels):
    def why_not(self, problem: NormFilm) -> str | None:
        if problem.dtype.is_complex:
            return f"{problem.dtype} goes through the plain formula"
        if 0 in problem.input_shape:
            return "an empty input goes through the plain formula"
        return None

    def is_slow(self, problem: NormFilm) -> bool:
        # Its sums alone take longer than all of plain PyTorch, measured on the CPU: it serves where it is pinned.
        return True

    def forward(self, problem, tensors, for_backward):
        input, weight, bias, gamma, beta = tensors
        seen = _Seen(problem)
        x = seen.wide(input)
        statistics = seen.statistics(x)
        y = _modulated(problem, seen, seen.xhat(x, statistics), weight, bias, gamma, beta)
        y = y.to(problem.dtype).contiguous(memory_format=problem.memory_format)
        if y is input:
            y = y.clone()
        return y, (statistics if for_backward else None)

    def backward(self, problem: NormFilm, grad: Tensor, kept: Tensor, tensors, wanted: Sequence[bool]) -> Gradients:
        input, weight, bias, gamma, beta = tensors
        seen, activation, slope = _Seen(problem), ACTIVATIONS[problem.activation], problem.negative_slope
        g = seen.wide(grad)
        xhat = seen.xhat(seen.wide(input), kept)
        scale, w = _scale(seen, gamma), seen.factor(weight, 1.0)
        z = xhat * w + seen.factor(bias, 0.0)  # what FiLM or, in "post", the activation was given
        if problem.film_position == "pre":
            d = activation.gradient(g, z * scale + seen.factor(beta, 0.0), slope)  # of what the activation was given
            of_gamma, of_beta, dz = d * z, d, d * scale
        else:
            of_gamma, of_beta = g * activation.apply(z, slope), g
            dz = activation.gradient(g * scale, z, slope)
        positions, rows = seen.positions, (problem.batch, problem.channels)
        found = (
            lambda: _grad_input(seen, dz * w, xhat, kept).contiguous(memory_format=problem.memory_format),
            lambda: sums(dz * xhat, (0, *positions)).flatten(),
            lambda: sums(dz, (0, *positions)).flatten(),
            lambda: sums(of_gamma, positions).reshape(rows),
            lambda: sums(of_beta, positions).reshape(rows) if positions else of_beta.clone(),  # which may be `grad`
        )
        return tuple(
            one().to(dtype) if asked else None
            for one, asked, dtype in zip(found, wanted, problem.tensor_dtypes, strict=True)
        )


def _scale(seen: _Seen, gamma: Tensor | None) -> Number:
    return seen.factor(gamma, 1.0) + seen.problem.gamma_offset


def _modulated(problem: NormFilm, seen: _Seen, xhat: Tensor, weight, bias, gamma, beta) -> Tensor:
    activation = ACTIVATIONS[problem.activation]
    scale, w, b, shift = _scale(seen, gamma), seen.factor(weight, 1.0), seen.factor(bias, 0.0), seen.factor(beta, 0.0)
    if problem.film_position == "pre":
        return activation.apply(xhat * (w * scale) + (b * scale + shift), problem.negative_slope)
    return activation.apply(xhat * w + b, problem.negative_slope) * scale + shift


def _grad_input(seen: _Seen, dxhat: Tensor, xhat: Tensor, statistics: Tensor) -> Tensor:
    """`rstd * (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat))`, as far as the normalisation takes these."""
    problem, dims = seen.problem, seen.normalised
    if problem.norm == NO_NORM:
        return dxhat
    dxhat, xhat = seen.in_groups(dxhat), seen.in_groups(xhat)
    along = sums(dxhat * xhat, dims)
    if problem.norm == "l2":  # of length 1 if it is not shorter than eps, where it has been scaled by a constant
        along = torch.where(seen.over_groups(statistics[-1]) >= problem.eps, along, 0)
    else:
        along = along / problem.group_size
    inner = dxhat - xhat * along
    if len(statistics) == 2:
        inner = inner - sums(dxhat, dims) / problem.group_size
    return seen.whole(inner * seen.rstd(statistics))
