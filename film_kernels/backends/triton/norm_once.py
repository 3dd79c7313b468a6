"""norm_film's backward where x and the gradient are read once: all that a mean is taken over is in one tile.

The input's gradient is written, and with it what a chunk sums for the other gradients (norm_kinds.py).
"""

import functools
from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ...problems.norm_film import NormFilm, Tensors
from . import launch as host
from .norm_across import grad_of_positions, load_columns, mean_slope
from .norm_cut import (
    Cut,
    arguments_of,
    empty_like_input,
    named_factors,
    of_positions,
    once_of,
    strides_of_factors,
)
from .norm_kinds import add_kinds, empty_sums, statistics_of_columns, store_kinds
from .norm_tiles import by_column, by_group, columns_of, differentiate, load_factors, load_statistics, tile_of
from .norm_tuning import NormEntry
from .plan import Plan
from .tiles import index


@triton.jit(do_not_specialize=["N"])
def backward_held_kernel(
    g, x, grad_input, sums, statistics, weight, bias, gamma, beta,
    N, P, groups, each, group_blocks, x_sn, x_sc, x_sp, w_sk, b_sk, gamma_sn, gamma_sk, beta_sn, beta_sk,
    eps: tl.constexpr, lower_slope: tl.constexpr, gamma_offset: tl.constexpr,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr, POST: tl.constexpr, KINDS: tl.constexpr,
    WHOLE: tl.constexpr, GROUPS: tl.constexpr, MEMBERS: tl.constexpr, ROWS: tl.constexpr,
    ACC: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    # indices
    n, block, _chunk = tile_of(tl.program_id(0), group_blocks, 1, WIDE)
    c, valid = columns_of(block, 0, groups, each, WHOLE, GROUPS, MEMBERS, WIDE)
    p = index(tl.arange(0, ROWS), WIDE)
    mask = (p < P)[:, None] & valid[None, :]
    offset = (n * x_sn + c * x_sc)[None, :] + (p * x_sp)[:, None]
    gradient = tl.load(g + offset, mask=mask, other=0.0).to(ACC)
    tile = tl.load(x + offset, mask=mask, other=0.0).to(ACC)
    w, b, scale, shift = load_factors(
        weight, bias, gamma, beta, n, True, c, valid, w_sk, b_sk, gamma_sn, gamma_sk, beta_sn, beta_sk,
        gamma_offset, ACC, True,
    )  # fmt: skip
    mean, rstd = statistics_of_columns(statistics, n, c, valid, N, groups, each, eps, NORM, ACC)

    # sums
    xhat = (tile - mean) * rstd
    d = differentiate(gradient, xhat, w, b, scale, shift, lower_slope, ACTIVATION, POST)
    none = tl.zeros((ROWS, GROUPS * MEMBERS), ACC)
    plain, along, third, fourth = add_kinds(
        none, none, none, none, gradient, xhat, d, mask, w, b, lower_slope, ACTIVATION, POST, KINDS
    )
    if sums is not None:
        store_kinds(sums, plain, along, third, fourth, n, 0, 1, N, groups * each, c, valid, KINDS, WIDE)

    # epilogue
    outer = scale * w
    count = (each * P).to(ACC)
    constant = by_group(outer * tl.sum(plain, axis=0, keep_dims=True), GROUPS, MEMBERS) / count
    slope = by_group(outer * tl.sum(along, axis=0, keep_dims=True), GROUPS, MEMBERS) / count
    inner = outer * d - by_column(constant, GROUPS, MEMBERS) - xhat * by_column(slope, GROUPS, MEMBERS)
    tl.store(grad_input + offset, (rstd * inner).to(grad_input.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["N", "chunks"])
def backward_across_kernel(
    g, x, grad_input, sums, statistics, weight, bias, gamma, beta,
    N, P, C, chunks, size, x_sn, x_sc, x_sp, w_sk, b_sk, gamma_sn, gamma_sk, beta_sn, beta_sk,
    eps: tl.constexpr, lower_slope: tl.constexpr, gamma_offset: tl.constexpr,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr, POST: tl.constexpr, KINDS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    # indices
    n, _block, chunk = tile_of(tl.program_id(0), 1, chunks, WIDE)
    c = index(tl.arange(0, COLUMNS), WIDE)
    first = chunk * size
    end = tl.minimum(P, first + size)
    w, b, scale, shift = load_factors(
        weight, bias, gamma, beta, n, True, c, c < C, w_sk, b_sk, gamma_sn, gamma_sk, beta_sn, beta_sk,
        gamma_offset, ACC, True,
    )  # fmt: skip
    outer = scale * w

    # main loop
    plain = tl.zeros((ROWS, COLUMNS), ACC)
    along = plain
    third = plain
    fourth = plain
    for p0 in range(first, end, ROWS):
        p = index(p0 + tl.arange(0, ROWS), WIDE)
        row = n * x_sn + p * x_sp
        tile, offset, mask, c, _valid = load_columns(x, row, p < end, 0, C, x_sc, COLUMNS, ACC, WIDE)
        gradient = tl.load(g + offset, mask=mask, other=0.0).to(ACC)
        number = (n * P + p)[:, None]
        mean, rstd = load_statistics(statistics, number, (p < end)[:, None], index(N, WIDE) * P, eps, NORM, ACC)
        xhat = (tile - mean) * rstd
        d = differentiate(gradient, xhat, w, b, scale, shift, lower_slope, ACTIVATION, POST)
        plain, along, third, fourth = add_kinds(
            plain, along, third, fourth, gradient, xhat, d, mask, w, b, lower_slope, ACTIVATION, POST, KINDS
        )
        inner = outer * d
        constant = tl.sum(tl.where(mask, inner, 0.0), axis=1, keep_dims=True) / C.to(ACC)
        slope = tl.sum(tl.where(mask, inner * xhat, 0.0), axis=1, keep_dims=True)
        slope = mean_slope(slope, statistics, number, (p < end)[:, None], C, eps, NORM, ACC)
        result = grad_of_positions(inner, xhat, constant, slope, rstd, C, NORM, ACC)
        tl.store(grad_input + offset, result.to(grad_input.dtype.element_ty), mask=mask)

    # epilogue
    store_kinds(sums, plain, along, third, fourth, n, chunk, chunks, N, C, c, c < C, KINDS, WIDE)


def backward_once(
    problem: NormFilm,
    entry: NormEntry,
    cut: Cut,
    grad: Tensor,
    statistics: Tensor,
    tensors: Tensors,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor | None]:
    """(the input's gradient, the sums of chunks if another gradient is wanted), by tiles of `cut`, the entry's."""
    x, *factors = tensors
    dx = empty_like_input(problem)
    sums = empty_sums(problem, wanted, cut.sizes["chunks"]) if any(wanted[1:]) else None
    given = {"g": grad, "x": x, "grad_input": dx, "sums": sums, "statistics": statistics, **named_factors(factors)}
    _plan(problem, entry, 0 if sums is None else len(sums), host.layouts(*factors)).start(given)
    return dx, sums


@functools.lru_cache(maxsize=4096)
def _plan(problem: NormFilm, entry: NormEntry, kinds: int, factors: host.Layouts) -> Plan:
    """For so many kinds of sums, or none."""
    cut = once_of(problem, entry, kinds > 0)
    assert cut is not None
    kernel = backward_across_kernel if of_positions(problem) else backward_held_kernel
    places = {**cut.sizes, **cut.tile}
    numbers = {
        **strides_of_factors(factors), **{name: places[name] for name in kernel.arg_names if name in places},
        **arguments_of(problem), "KINDS": max(kinds, 2),
    }  # fmt: skip
    return Plan(kernel, cut.programs, numbers, problem.device, cut.num_warps, 2)
