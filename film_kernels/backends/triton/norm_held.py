"""Normalisation of groups of channels, of which each is in one tile: x is read once, into registers."""

import functools

import triton
import triton.language as tl
from torch import Tensor

from ...problems.norm_film import NormFilm, Tensors
from . import launch as host
from .norm_cut import arguments_of, empty_like_input, held_of, named_factors, strides_of_factors
from .norm_tiles import (
    around_the_mean,
    by_column,
    by_group,
    columns_of,
    load_factors,
    modulate,
    reciprocal_deviation,
    tile_of,
)
from .norm_tuning import NormEntry
from .plan import Plan
from .tiles import index


@triton.jit(do_not_specialize=["N"])
def forward_held_kernel(
    x, y, statistics, weight, bias, gamma, beta, N, P, groups, each, group_blocks, x_sn, x_sc, x_sp,
    w_sk, b_sk, gamma_sn, gamma_sk, beta_sn, beta_sk,
    eps: tl.constexpr, lower_slope: tl.constexpr, gamma_offset: tl.constexpr,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr, POST: tl.constexpr,
    WHOLE: tl.constexpr, GROUPS: tl.constexpr, MEMBERS: tl.constexpr, ROWS: tl.constexpr,
    ACC: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    # indices
    n, block, _chunk = tile_of(tl.program_id(0), group_blocks, 1, WIDE)
    c, valid = columns_of(block, 0, groups, each, WHOLE, GROUPS, MEMBERS, WIDE)
    p = index(tl.arange(0, ROWS), WIDE)
    mask = (p < P)[:, None] & valid[None, :]
    offset = (n * x_sn + c * x_sc)[None, :] + (p * x_sp)[:, None]
    tile = tl.load(x + offset, mask=mask, other=0.0).to(ACC)

    # statistics, by two passes over registers
    count = (each * P).to(ACC)
    near = by_group(tl.sum(tile, axis=0), GROUPS, MEMBERS) / count
    away = tl.where(mask, tile - by_column(near, GROUPS, MEMBERS), 0.0)
    rest = by_group(tl.sum(away, axis=0), GROUPS, MEMBERS)
    off = rest / count
    squares = by_group(tl.sum(away * away, axis=0), GROUPS, MEMBERS)
    variance = around_the_mean(squares, rest, off) / count
    if statistics is not None:
        group = block * GROUPS + tl.arange(0, GROUPS)
        tl.store(statistics + n * groups + group, near + off, mask=group < groups)
        tl.store(statistics + (index(N, WIDE) + n) * groups + group, variance, mask=group < groups)

    # epilogue
    w, b, scale, shift = load_factors(
        weight, bias, gamma, beta, n, True, c, valid, w_sk, b_sk, gamma_sn, gamma_sk, beta_sn, beta_sk,
        gamma_offset, ACC, True,
    )  # fmt: skip
    rstd = by_column(reciprocal_deviation(variance, eps, NORM), GROUPS, MEMBERS)
    xhat = (tile - by_column(near + off, GROUPS, MEMBERS)) * rstd
    result = modulate(xhat, w, b, scale, shift, lower_slope, ACTIVATION, POST)
    tl.store(y + offset, result.to(y.dtype.element_ty), mask=mask)


def forward_held(problem: NormFilm, tensors: Tensors, statistics: Tensor | None, entry: NormEntry) -> Tensor:
    """y, from an input that is dense in the problem's memory format."""
    x, *factors = tensors
    y = empty_like_input(problem)
    given = {"x": x, "y": y, "statistics": statistics, **named_factors(factors)}
    _plan(problem, entry, host.layouts(*factors)).start(given)
    return y


@functools.lru_cache(maxsize=4096)
def _plan(problem: NormFilm, entry: NormEntry, factors: host.Layouts) -> Plan:
    cut = held_of(problem, entry, backward=False)
    assert cut is not None
    sizes = {name: size for name, size in cut.sizes.items() if name not in ("slabs", "chunks", "size")}
    numbers = {**strides_of_factors(factors), **sizes, **cut.tile, **arguments_of(problem)}
    return Plan(forward_held_kernel, cut.programs, numbers, problem.device, cut.num_warps, 2)
