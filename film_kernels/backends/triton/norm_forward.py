"""Normalisation of groups of channels, of channels, and none: statistics of tiles, and what they are merged to, y.

Both passes cut x alike, into chunks of positions of slabs of channels. Each chunk's squares are taken around the mean
of its first tile, so that no difference of large numbers is needed, and chunks are merged by their means.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...problems.norm_film import NO_NORM, NormFilm, Tensors
from . import launch as host
from .norm_cut import arguments_of, cut_of, empty_like_input, named_factors, strides_of_factors
from .norm_tiles import (
    around_the_mean,
    by_column,
    by_group,
    columns_of,
    load_factors,
    merged_moments,
    modulate,
    reciprocal_deviation,
    tile_of,
)
from .norm_tuning import NormEntry
from .plan import Plan
from .tiles import index


@triton.jit(do_not_specialize=["N", "chunks"])
def measure_kernel(
    x, moments, N, P, groups, each, group_blocks, slabs, chunks, size, x_sn, x_sc, x_sp,
    WHOLE: tl.constexpr, GROUPS: tl.constexpr, MEMBERS: tl.constexpr, ROWS: tl.constexpr,
    ACC: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    # indices
    n, block, slab, chunk = tile_of(tl.program_id(0), group_blocks, slabs, chunks, WIDE)
    c, valid = columns_of(block, slab, groups, each, WHOLE, GROUPS, MEMBERS, WIDE)
    first = chunk * size
    end = tl.minimum(P, first + size)
    members = tl.minimum(MEMBERS, each - slab * MEMBERS)
    column = x + (n * x_sn + c * x_sc)[None, :]
    row = tl.arange(0, ROWS)

    # main loop: what the chunk has around the mean of its first tile
    mask = (first + row < end)[:, None] & valid[None, :]
    tile = tl.load(column + (index(first + row, WIDE) * x_sp)[:, None], mask=mask, other=0.0).to(ACC)
    count = (tl.minimum(ROWS, end - first) * members).to(ACC)
    near = by_group(tl.sum(tile, axis=0), GROUPS, MEMBERS) / count
    around = by_column(near, GROUPS, MEMBERS)
    rest = tl.where(mask, tile - around, 0.0)
    squares = rest * rest
    for p0 in range(first + ROWS, end, ROWS):
        mask = (p0 + row < end)[:, None] & valid[None, :]
        tile = tl.load(column + (index(p0 + row, WIDE) * x_sp)[:, None], mask=mask, other=0.0).to(ACC)
        away = tl.where(mask, tile - around, 0.0)
        rest += away
        squares += away * away

    # epilogue
    rest = by_group(tl.sum(rest, axis=0), GROUPS, MEMBERS)
    off = rest / ((end - first) * members).to(ACC)
    squares = around_the_mean(by_group(tl.sum(squares, axis=0), GROUPS, MEMBERS), rest, off)
    group = block * GROUPS + tl.arange(0, GROUPS)
    all = index(N, WIDE) * slabs * chunks
    at = moments + ((n * slabs + slab) * chunks + chunk) * groups + group
    tl.store(at, near, mask=group < groups)
    tl.store(at + all * groups, off, mask=group < groups)
    tl.store(at + 2 * all * groups, squares, mask=group < groups)


@triton.jit(do_not_specialize=["N", "chunks"])
def apply_kernel(
    x, y, moments, statistics, weight, bias, gamma, beta,
    N, P, groups, each, group_blocks, slabs, chunks, size, x_sn, x_sc, x_sp,
    w_sk, b_sk, gamma_sn, gamma_sk, beta_sn, beta_sk,
    eps: tl.constexpr, lower_slope: tl.constexpr, gamma_offset: tl.constexpr,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr, POST: tl.constexpr,
    WHOLE: tl.constexpr, GROUPS: tl.constexpr, MEMBERS: tl.constexpr, ROWS: tl.constexpr, MERGED: tl.constexpr,
    SUM: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    # indices
    n, block, slab, chunk = tile_of(tl.program_id(0), group_blocks, slabs, chunks, WIDE)
    c, valid = columns_of(block, slab, groups, each, WHOLE, GROUPS, MEMBERS, WIDE)
    first = chunk * size
    end = tl.minimum(P, first + size)
    column = n * x_sn + c * x_sc
    row = tl.arange(0, ROWS)

    # statistics
    mean = tl.zeros((1, 1), ACC)
    rstd = mean + 1.0
    if NORM != "none":
        group = block * GROUPS + tl.arange(0, GROUPS)
        units = slabs * chunks
        sample = n * 0 if NORM == "batch" else n
        count = N * units if NORM == "batch" else units
        middle, variance = merged_moments(
            moments, sample * units, count, index(N, WIDE) * units, group, group < groups, groups, each, P, size,
            chunks, MEMBERS, SUM, MERGED,
        )  # fmt: skip
        middle = middle.to(ACC)
        variance = variance.to(ACC)
        if statistics is not None:
            written = (group < groups) & (slab == 0) & (chunk == 0) & ((n == 0) | (NORM != "batch"))
            tl.store(statistics + sample * groups + group, middle, mask=written)
            all = groups if NORM == "batch" else N * groups
            tl.store(statistics + all + sample * groups + group, variance, mask=written)
        mean = by_column(middle, GROUPS, MEMBERS)
        rstd = by_column(reciprocal_deviation(variance, eps, NORM), GROUPS, MEMBERS)

    # main loop
    w, b, scale, shift = load_factors(
        weight, bias, gamma, beta, n, True, c, valid, w_sk, b_sk, gamma_sn, gamma_sk, beta_sn, beta_sk,
        gamma_offset, ACC, True,
    )  # fmt: skip
    for p0 in range(first, end, ROWS):
        mask = (p0 + row < end)[:, None] & valid[None, :]
        offset = column[None, :] + (index(p0 + row, WIDE) * x_sp)[:, None]
        tile = tl.load(x + offset, mask=mask, other=0.0).to(ACC)
        result = modulate((tile - mean) * rstd, w, b, scale, shift, lower_slope, ACTIVATION, POST)
        tl.store(y + offset, result.to(y.dtype.element_ty), mask=mask)


def forward_of_groups(problem: NormFilm, tensors: Tensors, statistics: Tensor | None, entry: NormEntry) -> Tensor:
    """y, from an input that is dense in the problem's memory format."""
    x, *factors = tensors
    cut = cut_of(problem, entry)
    y = empty_like_input(problem)
    moments = None
    if problem.norm != NO_NORM:
        shape = (3, problem.batch * cut.units, cut.sizes["groups"])
        moments = torch.empty(shape, dtype=problem.accumulates_in, device=problem.device)
        _measure_plan(problem, entry).start({"x": x, "moments": moments})
    given = {"x": x, "y": y, "moments": moments, "statistics": statistics, **named_factors(factors)}
    _apply_plan(problem, entry, host.layouts(*factors)).start(given)
    return y


@functools.lru_cache(maxsize=4096)
def _measure_plan(problem: NormFilm, entry: NormEntry) -> Plan:
    cut = cut_of(problem, entry)
    return Plan(measure_kernel, cut.programs, {**cut.sizes, **cut.tile}, problem.device, cut.num_warps, 2)


@functools.lru_cache(maxsize=4096)
def _apply_plan(problem: NormFilm, entry: NormEntry, factors: host.Layouts) -> Plan:
    cut = cut_of(problem, entry)
    numbers = {
        **strides_of_factors(factors), **cut.sizes, **cut.tile, **arguments_of(problem),
        "MERGED": cut.merged, "SUM": cut.sum,
    }  # fmt: skip
    return Plan(apply_kernel, cut.programs, numbers, problem.device, cut.num_warps, 2)
