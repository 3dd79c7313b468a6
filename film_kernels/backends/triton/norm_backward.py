"""The gradients of norm_film: sums over chunks of positions, and the input's where groups or channels are normalised.

Where all that a mean is taken over is in one tile both are done at once (norm_once.py).
"""

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...problems.norm_film import NO_NORM, NormFilm, Tensors
from . import launch as host
from .norm_across import grad_input_of_positions
from .norm_cut import (
    arguments_of,
    channels_cut_of,
    dense,
    empty_like_input,
    named_factors,
    of_positions,
    once_of,
    strides_of_factors,
)
from .norm_finish import finish
from .norm_kinds import add_kinds, empty_sums, groups_of_columns, statistics_of_columns, store_kinds
from .norm_once import backward_once
from .norm_tiles import differentiate, load_factors, load_statistics, tile_of
from .norm_tuning import NormEntry
from .plan import Plan
from .tiles import index


@triton.jit(do_not_specialize=["N", "chunks"])
def sums_kernel(
    g, x, sums, statistics, weight, bias, gamma, beta,
    N, P, C, groups, each, blocks, chunks, size, x_sn, x_sc, x_sp,
    w_sk, b_sk, gamma_sn, gamma_sk, beta_sn, beta_sk,
    eps: tl.constexpr, lower_slope: tl.constexpr, gamma_offset: tl.constexpr,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr, POST: tl.constexpr, KINDS: tl.constexpr, ACROSS: tl.constexpr,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    # indices
    n, block, chunk = tile_of(tl.program_id(0), blocks, chunks, WIDE)
    c = index(block * COLUMNS + tl.arange(0, COLUMNS), WIDE)
    valid = c < C
    first = chunk * size
    end = tl.minimum(P, first + size)
    column = n * x_sn + c * x_sc
    row = tl.arange(0, ROWS)
    w, b, scale, shift = load_factors(
        weight, bias, gamma, beta, n, True, c, valid, w_sk, b_sk, gamma_sn, gamma_sk, beta_sn, beta_sk,
        gamma_offset, ACC, True,
    )  # fmt: skip
    if not ACROSS:
        mean, rstd = statistics_of_columns(statistics, n, c, valid, N, groups, each, eps, NORM, ACC)

    # main loop
    plain = tl.zeros((ROWS, COLUMNS), ACC)
    along = plain
    third = plain
    fourth = plain
    for p0 in range(first, end, ROWS):
        p = index(p0 + row, WIDE)
        mask = (p < end)[:, None] & valid[None, :]
        offset = column[None, :] + (p * x_sp)[:, None]
        gradient = tl.load(g + offset, mask=mask, other=0.0).to(ACC)
        tile = tl.load(x + offset, mask=mask, other=0.0).to(ACC)
        if ACROSS:
            number = (n * P + p)[:, None]
            mean, rstd = load_statistics(statistics, number, (p < end)[:, None], index(N, WIDE) * P, eps, NORM, ACC)
        xhat = (tile - mean) * rstd
        d = differentiate(gradient, xhat, w, b, scale, shift, lower_slope, ACTIVATION, POST)
        plain, along, third, fourth = add_kinds(
            plain, along, third, fourth, gradient, xhat, d, mask, w, b, lower_slope, ACTIVATION, POST, KINDS
        )

    # epilogue
    store_kinds(sums, plain, along, third, fourth, n, chunk, chunks, N, C, c, valid, KINDS, WIDE)


@triton.jit(do_not_specialize=["N", "chunks"])
def grad_input_kernel(
    g, x, grad_input, terms, statistics, weight, bias, gamma, beta,
    N, P, C, groups, each, blocks, chunks, size, x_sn, x_sc, x_sp,
    w_sk, b_sk, gamma_sn, gamma_sk, beta_sn, beta_sk,
    eps: tl.constexpr, lower_slope: tl.constexpr, gamma_offset: tl.constexpr,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr, POST: tl.constexpr, ALONE: tl.constexpr,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    # indices
    n, block, chunk = tile_of(tl.program_id(0), blocks, chunks, WIDE)
    c = index(block * COLUMNS + tl.arange(0, COLUMNS), WIDE)
    valid = c < C
    first = chunk * size
    end = tl.minimum(P, first + size)
    column = n * x_sn + c * x_sc
    row = tl.arange(0, ROWS)
    w, b, scale, shift = load_factors(
        weight, bias, gamma, beta, n, True, c, valid, w_sk, b_sk, gamma_sn, gamma_sk, beta_sn, beta_sk,
        gamma_offset, ACC, True,
    )  # fmt: skip
    mean, rstd = statistics_of_columns(statistics, n, c, valid, N, groups, each, eps, NORM, ACC)
    if terms is not None:
        at, count = groups_of_columns(n, c, N, groups, each, NORM)
        constant = tl.load(terms + at, mask=valid, other=0.0)[None, :]
        slope = tl.load(terms + count + at, mask=valid, other=0.0)[None, :]

    # main loop
    for p0 in range(first, end, ROWS):
        p = index(p0 + row, WIDE)
        mask = (p < end)[:, None] & valid[None, :]
        offset = column[None, :] + (p * x_sp)[:, None]
        gradient = tl.load(g + offset, mask=mask, other=0.0).to(ACC)
        tile = tl.load(x + offset, mask=mask, other=0.0).to(ACC)
        xhat = (tile - mean) * rstd
        inner = scale * w * differentiate(gradient, xhat, w, b, scale, shift, lower_slope, ACTIVATION, POST)
        if terms is not None:
            inner -= constant + xhat * slope
        if ALONE:  # each element is its own mean; what is not finite stays so
            inner *= 0.0
        tl.store(grad_input + offset, (rstd * inner).to(grad_input.dtype.element_ty), mask=mask)


def backward(
    problem: NormFilm, grad: Tensor, statistics: Tensor, tensors: Tensors, wanted: Sequence[bool], entry: NormEntry
) -> tuple[Tensor | None, ...]:
    """The gradients of the five tensors, None where `wanted` says so."""
    input, *factors = tensors
    x, grad = dense(problem, input), dense(problem, grad)
    tensors = (x, *factors)  # type: ignore[assignment]
    gradients: list[Tensor | None] = [None, *finish_shapes(problem, wanted, grad)]
    cut = once_of(problem, entry, any(wanted[1:])) if wanted[0] else None
    if cut is not None:
        gradients[0], sums = backward_once(problem, entry, cut, grad, statistics, tensors, wanted)
        if sums is not None:
            finish(problem, entry, sums, tensors, gradients[1:], None)
        return tuple(gradients)
    alone = problem.group_size == 1
    with_terms = wanted[0] and not (of_positions(problem) or alone or problem.norm == NO_NORM)
    terms = torch.empty_like(statistics) if with_terms else None
    if terms is not None or any(wanted[1:]):
        sums = _sums(problem, entry, grad, statistics, tensors, wanted)
        finish(problem, entry, sums, tensors, gradients[1:], terms)
    if wanted[0]:
        if of_positions(problem):
            gradients[0] = grad_input_of_positions(problem, grad, statistics, tensors, entry)
        else:
            gradients[0] = _grad_input(
                problem, entry, grad, statistics, tensors, terms, alone and problem.norm != NO_NORM
            )
    return tuple(gradients)


def finish_shapes(problem: NormFilm, wanted: Sequence[bool], grad: Tensor) -> list[Tensor | None]:
    """Empty gradients of the factors."""
    return [
        grad.new_empty(shape, dtype=dtype) if asked else None
        for shape, dtype, asked in zip(problem.tensor_shapes[1:], problem.tensor_dtypes[1:], wanted[1:], strict=True)
    ]


def _sums(
    problem: NormFilm, entry: NormEntry, grad: Tensor, statistics: Tensor, tensors: Tensors, wanted: Sequence[bool]
) -> Tensor:
    x, *factors = tensors
    cut = channels_cut_of(problem, entry)
    sums = empty_sums(problem, wanted, cut.sizes["chunks"])
    given = {"g": grad, "x": x, "sums": sums, "statistics": statistics, **named_factors(factors)}
    _sums_plan(problem, entry, host.layouts(*factors), len(sums)).start(given)
    return sums


@functools.lru_cache(maxsize=4096)
def _sums_plan(problem: NormFilm, entry: NormEntry, factors: host.Layouts, kinds: int) -> Plan:
    cut = channels_cut_of(problem, entry)
    numbers = {
        **strides_of_factors(factors), **cut.sizes, **cut.tile, **arguments_of(problem),
        "KINDS": kinds, "ACROSS": of_positions(problem),
    }  # fmt: skip
    num_warps = 2 * cut.num_warps if kinds == 4 else cut.num_warps  # so many sums leave registers for fewer elements
    return Plan(sums_kernel, cut.programs, numbers, problem.device, num_warps, 2)


def _grad_input(
    problem: NormFilm,
    entry: NormEntry,
    grad: Tensor,
    statistics: Tensor,
    tensors: Tensors,
    terms: Tensor | None,
    alone: bool,
) -> Tensor:
    x, *factors = tensors
    dx = empty_like_input(problem)
    given = {"g": grad, "x": x, "grad_input": dx, "terms": terms, "statistics": statistics, **named_factors(factors)}
    _grad_input_plan(problem, entry, host.layouts(*factors), alone).start(given)
    return dx


@functools.lru_cache(maxsize=4096)
def _grad_input_plan(problem: NormFilm, entry: NormEntry, factors: host.Layouts, alone: bool) -> Plan:
    cut = channels_cut_of(problem, entry)
    numbers = {**strides_of_factors(factors), **cut.sizes, **cut.tile, **arguments_of(problem), "ALONE": alone}
    return Plan(grad_input_kernel, cut.programs, numbers, problem.device, cut.num_warps, 2)
