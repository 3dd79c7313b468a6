"""Normalisation of the channels of each position, forward and the input's gradient.

A program has some positions, whose channels stay in registers where all of them are one tile (SINGLE), so that x is
read once. Otherwise it goes over them again.
"""

import functools
from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ...problems.norm_film import NormFilm, Tensors
from . import launch as host
from .norm_cut import across_of, arguments_of, empty_like_input, named_factors, strides_of_factors
from .norm_tiles import around_the_mean, differentiate, load_factors, load_statistics, modulate, reciprocal_deviation
from .norm_tuning import NormEntry
from .plan import Plan
from .tiles import index, sample_and_position


@triton.jit
def rows_of(N, P, x_sn, x_sp, ROWS: tl.constexpr, ONE_SAMPLE: tl.constexpr, WIDE: tl.constexpr):
    """(sample, valid, offset, number) of a program's positions."""
    n, q = sample_and_position(index(tl.program_id(0), WIDE), P, ROWS, ONE_SAMPLE)
    valid = (q < P) & (n < N)
    return n, valid, n * x_sn + q * x_sp, n * P + q


@triton.jit
def load_columns(tensor, row, valid, c0, C, x_sc, COLUMNS: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr):
    """(tile, offset, mask, channels, which of them there are) of the channels from c0 on."""
    c = index(c0 + tl.arange(0, COLUMNS), WIDE)
    mask = valid[:, None] & (c < C)[None, :]
    offset = row[:, None] + (c * x_sc)[None, :]
    return tl.load(tensor + offset, mask=mask, other=0.0).to(ACC), offset, mask, c, c < C


@triton.jit(do_not_specialize=["N"])
def forward_across_kernel(
    x, y, statistics, weight, bias, gamma, beta, N, P, C, x_sn, x_sc, x_sp,
    w_sk, b_sk, gamma_sn, gamma_sk, beta_sn, beta_sk,
    eps: tl.constexpr, lower_slope: tl.constexpr, gamma_offset: tl.constexpr,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr, POST: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SINGLE: tl.constexpr, ONE_SAMPLE: tl.constexpr,
    ACC: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    # indices
    n, valid, row, number = rows_of(N, P, x_sn, x_sp, ROWS, ONE_SAMPLE, WIDE)
    end = COLUMNS if SINGLE else C
    tile, offset, mask, c, c_valid = load_columns(x, row, valid, 0, C, x_sc, COLUMNS, ACC, WIDE)

    # statistics
    mean = tl.zeros((ROWS, 1), ACC)
    if NORM == "channel":
        total = tl.zeros((ROWS, COLUMNS), ACC)
        for c0 in range(0, end, COLUMNS):
            if not SINGLE:
                tile, offset, mask, c, c_valid = load_columns(x, row, valid, c0, C, x_sc, COLUMNS, ACC, WIDE)
            total += tile
        mean = tl.sum(total, axis=1, keep_dims=True) / C.to(ACC)
    rest = tl.zeros((ROWS, COLUMNS), ACC)
    squares = rest
    for c0 in range(0, end, COLUMNS):
        if not SINGLE:
            tile, offset, mask, c, c_valid = load_columns(x, row, valid, c0, C, x_sc, COLUMNS, ACC, WIDE)
        away = tl.where(mask, tile - mean, 0.0)
        rest += away
        squares += away * away
    second = tl.sum(squares, axis=1, keep_dims=True)
    if NORM == "channel":  # what the rounded mean left
        rest = tl.sum(rest, axis=1, keep_dims=True)
        off = rest / C.to(ACC)
        mean += off
        second = around_the_mean(second, rest, off)
    second = tl.sqrt(second) if NORM == "l2" else second / C.to(ACC)
    rstd = reciprocal_deviation(second, eps, NORM)
    if statistics is not None:
        at = statistics + number[:, None]
        if NORM == "channel":
            tl.store(at, mean, mask=valid[:, None])
            at += index(N, WIDE) * P
        tl.store(at, second, mask=valid[:, None])

    # epilogue
    for c0 in range(0, end, COLUMNS):
        if not SINGLE:
            tile, offset, mask, c, c_valid = load_columns(x, row, valid, c0, C, x_sc, COLUMNS, ACC, WIDE)
        w, b, scale, shift = load_factors(
            weight, bias, gamma, beta, n, valid, c, c_valid, w_sk, b_sk, gamma_sn, gamma_sk, beta_sn, beta_sk,
            gamma_offset, ACC, ONE_SAMPLE,
        )  # fmt: skip
        result = modulate((tile - mean) * rstd, w, b, scale, shift, lower_slope, ACTIVATION, POST)
        tl.store(y + offset, result.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["N"])
def grad_input_across_kernel(
    g, x, grad_input, statistics, weight, bias, gamma, beta, N, P, C, x_sn, x_sc, x_sp,
    w_sk, b_sk, gamma_sn, gamma_sk, beta_sn, beta_sk,
    eps: tl.constexpr, lower_slope: tl.constexpr, gamma_offset: tl.constexpr,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr, POST: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SINGLE: tl.constexpr, ONE_SAMPLE: tl.constexpr,
    ACC: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    # indices
    n, valid, row, number = rows_of(N, P, x_sn, x_sp, ROWS, ONE_SAMPLE, WIDE)
    end = COLUMNS if SINGLE else C
    mean, rstd = load_statistics(statistics, number[:, None], valid[:, None], index(N, WIDE) * P, eps, NORM, ACC)

    # the sums over channels of the gradient of xhat, and of that times xhat
    constant = tl.zeros((ROWS, COLUMNS), ACC)
    slope = constant
    xhat = constant
    inner = constant
    offset = row[:, None] + (index(tl.arange(0, COLUMNS), WIDE) * x_sc)[None, :]
    mask = valid[:, None] & (tl.arange(0, COLUMNS) < C)[None, :]
    for c0 in range(0, end, COLUMNS):
        xhat, inner, offset, mask = of_columns(
            g, x, weight, bias, gamma, beta, mean, rstd, n, valid, row, c0, C, x_sc,
            w_sk, b_sk, gamma_sn, gamma_sk, beta_sn, beta_sk,
            lower_slope, gamma_offset, ACTIVATION, POST, COLUMNS, ONE_SAMPLE, ACC, WIDE,
        )  # fmt: skip
        constant += tl.where(mask, inner, 0.0)
        slope += tl.where(mask, inner * xhat, 0.0)
    constant = tl.sum(constant, axis=1, keep_dims=True) / C.to(ACC)
    slope = tl.sum(slope, axis=1, keep_dims=True)
    slope = mean_slope(slope, statistics, number[:, None], valid[:, None], C, eps, NORM, ACC)

    # epilogue
    for c0 in range(0, end, COLUMNS):
        if not SINGLE:
            xhat, inner, offset, mask = of_columns(
                g, x, weight, bias, gamma, beta, mean, rstd, n, valid, row, c0, C, x_sc,
                w_sk, b_sk, gamma_sn, gamma_sk, beta_sn, beta_sk,
                lower_slope, gamma_offset, ACTIVATION, POST, COLUMNS, ONE_SAMPLE, ACC, WIDE,
            )  # fmt: skip
        result = grad_of_positions(inner, xhat, constant, slope, rstd, C, NORM, ACC)
        tl.store(grad_input + offset, result.to(grad_input.dtype.element_ty), mask=mask)


@triton.jit
def mean_slope(slope, statistics, at, valid, C, eps: tl.constexpr, NORM: tl.constexpr, ACC: tl.constexpr):
    """How much of xhat is taken off its gradient, from the sum of their products over the channels of a position."""
    if NORM == "l2":  # a vector shorter than eps has been scaled by a constant
        length = tl.load(statistics + at, mask=valid, other=0.0)
        slope = tl.where(length < eps, 0.0, slope)
    else:
        slope = slope / C.to(ACC)
    return slope


@triton.jit
def grad_of_positions(inner, xhat, constant, slope, rstd, C, NORM: tl.constexpr, ACC: tl.constexpr):
    """The input's gradient, of the gradient of xhat."""
    result = inner - xhat * slope
    if NORM == "channel":
        result -= constant
        result *= (C > 1).to(ACC)  # one channel is its own mean
    return result * rstd


@triton.jit
def of_columns(
    g, x, weight, bias, gamma, beta, mean, rstd, n, valid, row, c0, C, x_sc,
    w_sk, b_sk, gamma_sn, gamma_sk, beta_sn, beta_sk,
    lower_slope: tl.constexpr, gamma_offset: tl.constexpr, ACTIVATION: tl.constexpr, POST: tl.constexpr,
    COLUMNS: tl.constexpr, ONE_SAMPLE: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """(xhat, its gradient, offset, mask) of the channels from c0 on."""
    tile, offset, mask, c, c_valid = load_columns(x, row, valid, c0, C, x_sc, COLUMNS, ACC, WIDE)
    gradient = tl.load(g + offset, mask=mask, other=0.0).to(ACC)
    w, b, scale, shift = load_factors(
        weight, bias, gamma, beta, n, valid, c, c_valid, w_sk, b_sk, gamma_sn, gamma_sk, beta_sn, beta_sk,
        gamma_offset, ACC, ONE_SAMPLE,
    )  # fmt: skip
    xhat = (tile - mean) * rstd
    inner = scale * w * differentiate(gradient, xhat, w, b, scale, shift, lower_slope, ACTIVATION, POST)
    return xhat, inner, offset, mask


def forward_of_positions(problem: NormFilm, tensors: Tensors, statistics: Tensor | None, entry: NormEntry) -> Tensor:
    """y, from an input that is dense in the problem's memory format."""
    x, *factors = tensors
    y = empty_like_input(problem)
    _launch(problem, entry, forward_across_kernel, {"x": x, "y": y, "statistics": statistics}, factors)
    return y


def grad_input_of_positions(
    problem: NormFilm, grad: Tensor, statistics: Tensor, tensors: Tensors, entry: NormEntry
) -> Tensor:
    x, *factors = tensors
    dx = empty_like_input(problem)
    given = {"g": grad, "x": x, "grad_input": dx, "statistics": statistics}
    _launch(problem, entry, grad_input_across_kernel, given, factors)
    return dx


def _launch(
    problem: NormFilm, entry: NormEntry, kernel, given: dict[str, Tensor | None], factors: Sequence[Tensor | None]
) -> None:
    _plan(problem, entry, kernel, host.layouts(*factors)).start({**given, **named_factors(factors)})


@functools.lru_cache(maxsize=4096)
def _plan(problem: NormFilm, entry: NormEntry, kernel, factors: host.Layouts) -> Plan:
    cut = across_of(problem, entry)
    numbers = {**strides_of_factors(factors), **cut.sizes, **cut.tile, **arguments_of(problem)}
    return Plan(kernel, cut.programs, numbers, problem.device, cut.num_warps, 2)
