"""The second, small step of norm_film's backward: what chunks summed (norm_backward.py) is added in a fixed order.

dgamma[n, c] = weight * sum of d * xhat, or the sum of d * z, or of g * act(z)     dbeta[n, c] = sum of d, or of g
dw[c] = sum over n of scale * sum of d * xhat                                      db[c] the same of d
terms of a group: means of the gradient of xhat, scale * weight * d, and of that times xhat
"""

import functools
from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ...problems.norm_film import NormFilm, Tensors
from . import launch as host
from .finish import add_rows, narrow
from .norm_cut import groups_cut_of, strides_of_factors, sum_of
from .norm_tiles import by_group, columns_of
from .norm_tuning import NormEntry
from .plan import Plan
from .tiles import index

_COLUMNS, _TILE = 32, 1024


@triton.jit
def add_scaled(
    sums, gamma, first, count, chunks, C, c, valid, gamma_sn, gamma_sk,
    gamma_offset: tl.constexpr, SUM: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """sum of (gamma + gamma_offset) * sums over the rows first <= i < first + count, each of a chunk of a sample."""
    total = tl.zeros((ROWS, c.shape[0]), SUM)
    for i in range(0, count, ROWS):
        row = first + i + tl.arange(0, ROWS)
        mask = (row < first + count)[:, None] & valid[None, :]
        part = tl.load(sums + (row * C)[:, None] + c[None, :], mask=mask, other=0.0).to(SUM)
        scale = tl.full((1, 1), 1.0, SUM)
        if gamma is not None:
            sample = row.to(tl.int32) // chunks  # as many rows as programs had chunks: fewer than 2^31
            offset = (sample.to(row.dtype) * gamma_sn)[:, None] + (c * gamma_sk)[None, :]
            scale = tl.load(gamma + offset, mask=mask, other=0.0).to(SUM)
        total += tl.where(mask, (scale + gamma_offset) * part, 0.0)
    return tl.sum(total, axis=0)


@triton.jit(do_not_specialize=["N", "chunks", "film_programs", "channel_programs"])
def finish_kernel(
    sums, weight, gamma, grad_weight, grad_bias, grad_gamma, grad_beta, terms,
    N, groups, each, group_blocks, slabs, chunks, film_programs, channel_programs, w_sk, gamma_sn, gamma_sk,
    group_size: tl.constexpr, gamma_offset: tl.constexpr, KINDS: tl.constexpr, BATCH: tl.constexpr,
    WHOLE: tl.constexpr, GROUPS: tl.constexpr, MEMBERS: tl.constexpr,
    SUM: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP_ROWS: tl.constexpr,
):  # fmt: skip
    # Programs in turn: dgamma and dbeta of some channels of a sample; dw and db of some channels; terms of some groups.
    pid = tl.program_id(0)
    C = groups * each
    all = index(N, WIDE) * chunks * C
    blocks = tl.cdiv(C, COLUMNS)
    if pid < film_programs:
        n = index(pid // blocks, WIDE)
        c = index(pid % blocks * COLUMNS + tl.arange(0, COLUMNS), WIDE)
        if grad_gamma is not None:
            kind: tl.constexpr = 1 if KINDS == 2 else 2
            total = add_rows(sums + kind * all, n * chunks, chunks, C, c, c < C, SUM, ROWS, COLUMNS)
            if KINDS == 2 and weight is not None:
                total *= tl.load(weight + c * w_sk, mask=c < C, other=0.0).to(SUM)
            tl.store(grad_gamma + n * C + c, narrow(total, grad_gamma), mask=c < C)
        if grad_beta is not None:
            kind_beta: tl.constexpr = 3 if KINDS == 4 else 0
            total = add_rows(sums + kind_beta * all, n * chunks, chunks, C, c, c < C, SUM, ROWS, COLUMNS)
            tl.store(grad_beta + n * C + c, narrow(total, grad_beta), mask=c < C)
    elif pid < film_programs + channel_programs:
        c = index((pid - film_programs) * COLUMNS + tl.arange(0, COLUMNS), WIDE)
        parts = index(N, WIDE) * chunks
        if grad_weight is not None:
            total = add_scaled(
                sums + all, gamma, parts * 0, parts, chunks, C, c, c < C, gamma_sn, gamma_sk, gamma_offset, SUM, ROWS
            )
            tl.store(grad_weight + c, narrow(total, grad_weight), mask=c < C)
        if grad_bias is not None:
            total = add_scaled(
                sums, gamma, parts * 0, parts, chunks, C, c, c < C, gamma_sn, gamma_sk, gamma_offset, SUM, ROWS
            )
            tl.store(grad_bias + c, narrow(total, grad_bias), mask=c < C)
    elif terms is not None:
        place = pid - film_programs - channel_programs
        n = index(place // group_blocks, WIDE)
        block = place % group_blocks
        count = index(N, WIDE) * chunks if BATCH else index(chunks, WIDE)
        constant = tl.zeros((GROUPS,), SUM)
        slope = constant
        for slab in range(0, slabs):
            c, valid = columns_of(block, slab, groups, each, WHOLE, GROUPS, MEMBERS, WIDE)
            w = tl.full((1,), 1.0, SUM)
            if weight is not None:
                w = tl.load(weight + c * w_sk, mask=valid, other=0.0).to(SUM)
            plain = add_scaled(
                sums, gamma, n * chunks, count, chunks, C, c, valid, gamma_sn, gamma_sk, gamma_offset, SUM, GROUP_ROWS
            )
            along = add_scaled(
                sums + all, gamma, n * chunks, count, chunks, C, c, valid, gamma_sn, gamma_sk, gamma_offset, SUM,
                GROUP_ROWS,
            )  # fmt: skip
            constant += by_group(w * plain, GROUPS, MEMBERS)
            slope += by_group(w * along, GROUPS, MEMBERS)
        group = block * GROUPS + tl.arange(0, GROUPS)
        rows = 1 if BATCH else N
        at = terms + n * groups + group
        tl.store(at, (constant / group_size).to(terms.dtype.element_ty), mask=group < groups)
        tl.store(at + rows * groups, (slope / group_size).to(terms.dtype.element_ty), mask=group < groups)


def finish(
    problem: NormFilm,
    entry: NormEntry,
    sums: Tensor,
    tensors: Tensors,
    gradients: Sequence[Tensor | None],
    terms: Tensor | None,
) -> None:
    """Write `gradients` (dw, db, dgamma, dbeta), of which some are None, and `terms`, from the sums of chunks."""
    weight, _, gamma, _ = tensors[1:]
    wanted = tuple(gradient is not None for gradient in (*gradients, terms))
    named = dict(zip(("grad_weight", "grad_bias", "grad_gamma", "grad_beta"), gradients, strict=True))
    given = {"sums": sums, "terms": terms, **named, "weight": weight, "gamma": gamma}
    _plan(problem, entry, sums.shape, host.layouts(weight, gamma), wanted).start(given)


@functools.lru_cache(maxsize=4096)
def _plan(
    problem: NormFilm, entry: NormEntry, shape: tuple[int, ...], layouts: host.Layouts, wanted: tuple[bool, ...]
) -> Plan:
    weight, gamma = layouts
    cut, factors = groups_cut_of(problem, entry), strides_of_factors((weight, None, gamma, None))
    kinds, batch, chunks, channels = shape
    blocks = host.cdiv(channels, _COLUMNS)
    film = batch * blocks if wanted[2] or wanted[3] else 0
    channel = blocks if wanted[0] or wanted[1] else 0
    of_batch = problem.norm == "batch"
    groups = cut.programs if wanted[4] else 0
    columns = cut.tile["GROUPS"] * cut.tile["MEMBERS"]  # type: ignore[operator]
    rows = host.next_power_of_2(batch * chunks)
    numbers = {
        **{name: factors[name] for name in ("w_sk", "gamma_sn", "gamma_sk")},
        **cut.sizes, **cut.tile, "chunks": chunks,
        "film_programs": film, "channel_programs": channel, "group_size": float(problem.group_size),
        "gamma_offset": float(problem.gamma_offset), "KINDS": kinds, "BATCH": of_batch, "SUM": sum_of(problem),
        "ROWS": min(rows, _TILE // _COLUMNS), "COLUMNS": _COLUMNS, "GROUP_ROWS": min(rows, max(1, _TILE // columns)),
    }  # fmt: skip
    return Plan(finish_kernel, film + channel + groups, numbers, problem.device, 4, 2)
