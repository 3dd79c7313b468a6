"""What norm_film's backward sums over the positions of a tile, kind by kind, and how the sums are laid out.

With d = g * act'(v) there are for each channel the sums of d and d * xhat; for dgamma that of d * z, where a bias could
cancel in these two; and with FiLM after the activation, for dgamma and dbeta, those of g * act(z) and g.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...problems.norm_film import NormFilm
from .activate import activate
from .norm_tiles import load_statistics
from .tiles import index


@triton.jit
def groups_of_columns(n, c, N, groups, each, NORM: tl.constexpr):
    """(the numbers of the groups of channels c, how many groups there are in all)."""
    at = c // each
    count = groups
    if NORM != "batch":
        at += n * groups
        count = N * groups
    return at, count


@triton.jit
def statistics_of_columns(
    statistics, n, c, valid, N, groups, each, eps: tl.constexpr, NORM: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """(mean, rstd) as rows of a tile, of norms of groups of channels or of channels."""
    at, count = groups_of_columns(n, c, N, groups, each, NORM)
    mean, rstd = load_statistics(statistics, at, valid, count, eps, NORM, ACC)
    return mean[None, :], rstd[None, :]


@triton.jit
def add_kinds(
    plain, along, third, fourth, gradient, xhat, d, mask, w, b,
    lower_slope: tl.constexpr, ACTIVATION: tl.constexpr, POST: tl.constexpr, KINDS: tl.constexpr,
):  # fmt: skip
    """The four tiles of sums with those of another tile; kinds that are not wanted stay as they are."""
    plain += tl.where(mask, d, 0.0)
    along += tl.where(mask, d * xhat, 0.0)
    if POST:
        third += tl.where(mask, gradient * activate(w * xhat + b, lower_slope, ACTIVATION), 0.0)
        fourth += gradient
    elif KINDS > 2:
        third += tl.where(mask, d * (w * xhat + b), 0.0)
    return plain, along, third, fourth


@triton.jit
def store_kinds(
    sums, plain, along, third, fourth, n, chunk, chunks, N, C, c, valid, KINDS: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """Write the sums over rows of a chunk's tiles."""
    at = sums + (n * chunks + chunk) * C + c
    all = index(N, WIDE) * chunks * C
    tl.store(at, tl.sum(plain, axis=0), mask=valid)
    tl.store(at + all, tl.sum(along, axis=0), mask=valid)
    if KINDS > 2:
        tl.store(at + 2 * all, tl.sum(third, axis=0), mask=valid)
    if KINDS > 3:
        tl.store(at + 3 * all, tl.sum(fourth, axis=0), mask=valid)


def empty_sums(problem: NormFilm, wanted: Sequence[bool], chunks: int) -> Tensor:
    """(kinds, N, chunks, C), of what these gradients are made from."""
    kinds = 4 if problem.film_position == "post" else 3 if problem.has_bias and wanted[3] else 2
    shape = (kinds, problem.batch, chunks, problem.channels)
    return torch.empty(shape, dtype=problem.accumulates_in, device=problem.device)
