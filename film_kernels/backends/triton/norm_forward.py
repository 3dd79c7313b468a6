"""Normalisation of groups of channels, of channels, and none: statistics of tiles, and what they are merged to, y.

Both passes cut x alike, into chunks of positions of channels that lie side by side. Each chunk's squares are taken
around the mean of its first tile, so that no difference of large numbers is needed, and chunks are merged by their
means.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...problems.norm_film import NO_NORM, NormFilm, Tensors
from . import launch as host
from .norm_cut import (
    arguments_of,
    channels_cut_of,
    empty_like_input,
    named_factors,
    slots_in,
    strides_of_factors,
    sum_of,
)
from .norm_slots import by_slot, columns_of_slots, members_of_slots, merged_moments, of_slot, slots_of
from .norm_tiles import around_the_mean, load_factors, modulate, reciprocal_deviation, tile_of
from .norm_tuning import NormEntry
from .plan import Plan
from .tiles import index


@triton.jit(do_not_specialize=["N", "chunks"])
def measure_kernel(
    x, moments, N, P, C, groups, blocks, chunks, size, x_sn, x_sc, x_sp,
    EACH: tl.constexpr, SLOTS: tl.constexpr, MEMBERS: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
    ACC: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    # indices
    n, block, chunk = tile_of(tl.program_id(0), blocks, chunks, WIDE)
    c = index(block * COLUMNS + tl.arange(0, COLUMNS), WIDE)
    valid = c < C
    slot = slots_of(block, EACH, COLUMNS)
    first = chunk * size
    end = tl.minimum(P, first + size)
    column = x + (n * x_sn + c * x_sc)[None, :]
    row = tl.arange(0, ROWS)

    # main loop: what the chunk has around the mean of its first tile
    mask = (first + row < end)[:, None] & valid[None, :]
    tile = tl.load(column + (index(first + row, WIDE) * x_sp)[:, None], mask=mask, other=0.0).to(ACC)
    begin, past = columns_of_slots(block, C, EACH, COLUMNS, SLOTS)
    members = members_of_slots(begin, past, EACH, COLUMNS)
    count = (tl.minimum(ROWS, end - first) * members).to(ACC)
    near = by_slot(tl.sum(tile, axis=0), begin, past, EACH, COLUMNS, SLOTS, MEMBERS) / count
    around = of_slot(near, slot, EACH, SLOTS)
    rest = tl.where(mask, tile - around, 0.0)
    squares = rest * rest
    for p0 in range(first + ROWS, end, ROWS):
        mask = (p0 + row < end)[:, None] & valid[None, :]
        tile = tl.load(column + (index(p0 + row, WIDE) * x_sp)[:, None], mask=mask, other=0.0).to(ACC)
        away = tl.where(mask, tile - around, 0.0)
        rest += away
        squares += away * away

    # epilogue
    rest = by_slot(tl.sum(rest, axis=0), begin, past, EACH, COLUMNS, SLOTS, MEMBERS)
    off = rest / ((end - first) * members).to(ACC)
    squares = by_slot(tl.sum(squares, axis=0), begin, past, EACH, COLUMNS, SLOTS, MEMBERS)
    squares = around_the_mean(squares, rest, off)
    all = index(N, WIDE) * chunks * blocks * SLOTS
    at = moments + ((n * chunks + chunk) * blocks + block) * SLOTS + tl.arange(0, SLOTS)
    tl.store(at, near)
    tl.store(at + all, off)
    tl.store(at + 2 * all, squares)


@triton.jit(do_not_specialize=["N", "chunks"])
def apply_kernel(
    x, y, moments, statistics, weight, bias, gamma, beta,
    N, P, C, groups, blocks, chunks, size, x_sn, x_sc, x_sp,
    w_sk, b_sk, gamma_sn, gamma_sk, beta_sn, beta_sk,
    eps: tl.constexpr, lower_slope: tl.constexpr, gamma_offset: tl.constexpr,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr, POST: tl.constexpr,
    EACH: tl.constexpr, SLOTS: tl.constexpr, SPAN: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
    MERGED: tl.constexpr, SUM: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    # indices
    n, block, chunk = tile_of(tl.program_id(0), blocks, chunks, WIDE)
    c = index(block * COLUMNS + tl.arange(0, COLUMNS), WIDE)
    valid = c < C
    first = chunk * size
    end = tl.minimum(P, first + size)
    column = n * x_sn + c * x_sc
    row = tl.arange(0, ROWS)

    # statistics
    mean = tl.zeros((1, 1), ACC)
    rstd = mean + 1.0
    if NORM != "none":
        sample = n * 0 if NORM == "batch" else n
        count = N * chunks if NORM == "batch" else chunks
        middle, variance = merged_moments(
            moments, sample * chunks, count, index(N, WIDE) * chunks, block, blocks, groups, P, size, chunks,
            EACH, COLUMNS, SLOTS, SPAN, SUM, MERGED,
        )  # fmt: skip
        middle = middle.to(ACC)
        variance = variance.to(ACC)
        if statistics is not None:
            group = block * COLUMNS // EACH + tl.arange(0, SLOTS)
            # a group that reaches into several blocks is written by that in which it begins
            begins = (group * EACH >= block * COLUMNS) & (group * EACH < (block + 1) * COLUMNS) & (group < groups)
            written = begins & (chunk == 0) & ((n == 0) | (NORM != "batch"))
            tl.store(statistics + sample * groups + group, middle, mask=written)
            all = groups if NORM == "batch" else N * groups
            tl.store(statistics + all + sample * groups + group, variance, mask=written)
        slot = slots_of(block, EACH, COLUMNS)
        mean = of_slot(middle, slot, EACH, SLOTS)
        rstd = of_slot(reciprocal_deviation(variance, eps, NORM), slot, EACH, SLOTS)

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
    y = empty_like_input(problem)
    moments = None
    if problem.norm != NO_NORM:
        sizes = channels_cut_of(problem, entry).sizes
        shape = (3, problem.batch, sizes["chunks"], sizes["blocks"], slots_in(problem, entry).slots)
        moments = torch.empty(shape, dtype=problem.accumulates_in, device=problem.device)
        _measure_plan(problem, entry).start({"x": x, "moments": moments})
    given = {"x": x, "y": y, "moments": moments, "statistics": statistics, **named_factors(factors)}
    _apply_plan(problem, entry, host.layouts(*factors)).start(given)
    return y


@functools.lru_cache(maxsize=4096)
def _measure_plan(problem: NormFilm, entry: NormEntry) -> Plan:
    cut = channels_cut_of(problem, entry)
    numbers = {**_numbers(problem, entry), "MEMBERS": slots_in(problem, entry).members}
    return Plan(measure_kernel, cut.programs, numbers, problem.device, cut.num_warps, 2)


@functools.lru_cache(maxsize=4096)
def _apply_plan(problem: NormFilm, entry: NormEntry, factors: host.Layouts) -> Plan:
    cut, slots = channels_cut_of(problem, entry), slots_in(problem, entry)
    count = cut.sizes["chunks"] * slots.span * (problem.batch if problem.norm == "batch" else 1)
    numbers = {
        **strides_of_factors(factors), **_numbers(problem, entry), **arguments_of(problem), "SPAN": slots.span,
        "MERGED": min(host.next_power_of_2(count), max(1, 1024 // slots.slots)), "SUM": sum_of(problem),
    }  # fmt: skip
    return Plan(apply_kernel, cut.programs, numbers, problem.device, cut.num_warps, 2)


def _numbers(problem: NormFilm, entry: NormEntry) -> dict[str, object]:
    cut, slots = channels_cut_of(problem, entry), slots_in(problem, entry)
    sizes = {name: size for name, size in cut.sizes.items() if name != "each"}  # which is known when it is compiled
    return {**sizes, **cut.tile, "EACH": slots.each, "SLOTS": slots.slots}
