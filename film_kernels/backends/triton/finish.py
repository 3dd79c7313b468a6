"""The second, small step of every sum that is split over programs: partial sums are added in a fixed order."""

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...problems.conv_film import ConvFilm
from . import launch as host
from .plan import Plan
from .tiles import index, sum_type

_TILE = 1024  # partial sums added at once


@triton.jit
def add_rows(
    partial, first, count, pitch, column, valid, SUM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """sum of partial[i * pitch + column] over first <= i < first + count, in the type SUM."""
    total = tl.zeros((ROWS, COLUMNS), SUM)
    for i in range(0, count, ROWS):
        row = i + tl.arange(0, ROWS)
        offset = ((first + row) * pitch)[:, None] + column[None, :]
        total += tl.load(partial + offset, mask=(row < count)[:, None] & valid[None, :], other=0.0).to(SUM)
    return tl.sum(total, axis=0)


@triton.jit
def narrow(value, out):
    """`value` in the type that `out` points to, by way of float32: float64 has no way to bfloat16 of its own."""
    return value.to(sum_type(out.dtype.element_ty)).to(out.dtype.element_ty)


@triton.jit
def finish_weight(
    block, partial_w, grad_w, K, C, splits, w_sn, w_sc, w_sh, w_sw,
    KH: tl.constexpr, KW: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    products = KH * KW * C
    element = index(block, WIDE) * COLUMNS + tl.arange(0, COLUMNS)
    valid = element < K * products
    total = add_rows(
        partial_w, block * 0, splits, K * products, element, valid, sum_type(grad_w.dtype.element_ty), ROWS, COLUMNS
    )
    k = element // products
    r = element - k * products
    tap = r // C
    offset = k * w_sn + (r - tap * C) * w_sc + (tap // KW) * w_sh + (tap % KW) * w_sw
    tl.store(grad_w + offset, narrow(total, grad_w), mask=valid)


@triton.jit
def finish_film(
    block, partial_dot, sums_u, sums_g, bias, grad_gamma, grad_beta, K, dots, chunks, bias_sk,
    POST: tl.constexpr, NAN_FROM_G: tl.constexpr, WIDE: tl.constexpr,
    SUM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    k_blocks = tl.cdiv(K, COLUMNS)
    n = index(block // k_blocks, WIDE)
    k = block % k_blocks * COLUMNS + tl.arange(0, COLUMNS)
    valid = k < K
    sum_u = tl.zeros((COLUMNS,), SUM)
    sum_g = sum_u
    if sums_u is not None:
        sum_u = add_rows(sums_u, n * chunks, chunks, K, k, valid, SUM, ROWS, COLUMNS)
    if sums_g is not None:
        sum_g = add_rows(sums_g, n * chunks, chunks, K, k, valid, SUM, ROWS, COLUMNS)
    if grad_gamma is not None:
        total = add_rows(partial_dot, n * dots, dots, K, k, valid, SUM, ROWS, COLUMNS)
        if bias is not None:
            total += tl.load(bias + k * bias_sk, mask=valid, other=0.0).to(SUM) * sum_u
        if NAN_FROM_G:
            total += 0.0 * sum_g
        tl.store(grad_gamma + n * K + k, narrow(total, grad_gamma), mask=valid)
    if grad_beta is not None:
        total = sum_g if POST else sum_u
        tl.store(grad_beta + n * K + k, narrow(total, grad_beta), mask=valid)


@triton.jit
def finish_bias(
    block, sums_u, gamma, grad_bias, N, K, chunks, gamma_sn, gamma_sk, gamma_offset: tl.constexpr,
    WIDE: tl.constexpr, SUM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    k = block * COLUMNS + tl.arange(0, COLUMNS)
    valid = k < K
    total = tl.zeros((ROWS, COLUMNS), SUM)
    for i in range(0, N * chunks, ROWS):
        unit = index(i + tl.arange(0, ROWS), WIDE)
        mask = (unit < N * chunks)[:, None] & valid[None, :]
        sum_u = tl.load(sums_u + (unit * K)[:, None] + k[None, :], mask=mask, other=0.0).to(SUM)
        scale = tl.full((1, 1), 1.0, SUM)
        if gamma is not None:
            offset = ((unit // chunks) * gamma_sn)[:, None] + (k * gamma_sk)[None, :]
            scale = tl.load(gamma + offset, mask=mask, other=0.0).to(SUM)
        total += tl.where(mask, (scale + gamma_offset) * sum_u, 0.0)
    tl.store(grad_bias + k, narrow(tl.sum(total, axis=0), grad_bias), mask=valid)


@triton.jit(do_not_specialize=["N", "splits", "dots", "chunks", "w_programs", "film_programs"])
def finish_kernel(
    partial_w, partial_dot, sums_u, sums_g, bias, gamma, grad_w, grad_bias, grad_gamma, grad_beta,
    N, C, K, splits, dots, chunks, w_programs, film_programs,
    gamma_sn, gamma_sk, bias_sk, w_sn, w_sc, w_sh, w_sw,
    gamma_offset: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, POST: tl.constexpr, NAN_FROM_G: tl.constexpr, WIDE: tl.constexpr,
    SUM: tl.constexpr, W_ROWS: tl.constexpr, W_COLUMNS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    # Programs in turn: a run of dW each; dgamma and dbeta of some channels of a sample; db of some channels.
    pid = tl.program_id(0)
    if pid < w_programs:
        if grad_w is not None:
            finish_weight(pid, partial_w, grad_w, K, C, splits, w_sn, w_sc, w_sh, w_sw, KH, KW, WIDE, W_ROWS, W_COLUMNS)
    elif pid < w_programs + film_programs:
        finish_film(
            pid - w_programs, partial_dot, sums_u, sums_g, bias, grad_gamma, grad_beta, K, dots, chunks, bias_sk,
            POST, NAN_FROM_G, WIDE, SUM, ROWS, COLUMNS,
        )  # fmt: skip
    elif grad_bias is not None:
        finish_bias(
            pid - w_programs - film_programs, sums_u, gamma, grad_bias, N, K, chunks, gamma_sn, gamma_sk,
            gamma_offset, WIDE, SUM, ROWS, COLUMNS,
        )  # fmt: skip


def empty_results(
    problem: ConvFilm, grad: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """(dz, db, dgamma, dbeta) to be written, None where `wanted` says so; dz in the problem's memory format."""
    n_k = (problem.batch, problem.out_channels)
    dz = None
    if wanted[0]:
        dz = torch.empty(
            problem.out_shape, dtype=problem.dtype, device=problem.device, memory_format=problem.memory_format
        )
    grad_bias = grad.new_empty(n_k[1]) if wanted[1] else None
    return dz, grad_bias, *(grad.new_empty(n_k) if asked else None for asked in wanted[2:])


def empty_partials(
    problem: ConvFilm, chunks: int, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(partial_gamma, sums_u, sums_g), each (N, chunks, K), as `finish` takes them without products; None where
    (dz, db, dgamma, dbeta), of which some are `wanted`, need none."""
    post = problem.film_position == "post"
    _, want_bias, want_gamma, want_beta = wanted
    shape = (problem.batch, chunks, problem.out_channels)
    return tuple(  # type: ignore[return-value]
        torch.empty(shape, dtype=host.sum_dtype(problem), device=problem.device) if asked else None
        for asked in (want_gamma, want_bias or (want_beta and not post), want_beta and post)
    )


def finish(
    problem: ConvFilm,
    partials: Sequence[Tensor | None],
    bias: Tensor | None,
    gamma: Tensor | None,
    gradients: Sequence[Tensor | None],
    from_products: bool = True,
) -> None:
    """Write `gradients`, (dW, db, dgamma, dbeta) or None each, from `partials`, partial sums in `launch.sum_dtype`:

    (partial_w (splits, K, KH * KW * C), partial_dot (N, dots, K), sums_u (N, chunks, K), sums_g (N, chunks, K)), with
    dW = sum_split partial_w, dgamma = sum_dot partial_dot, and + b * sum_chunk sums_u where partial_dot is <W, U>
    (`from_products`), dbeta = sum_chunk sums_g (post) or sums_u (pre), db = sum_(n, chunk) gamma * sums_u.
    """
    wanted = tuple(gradient is not None for gradient in gradients)
    if not any(wanted):
        return
    layouts = host.layouts(*partials, bias, gamma, gradients[0])
    tensors = {
        **dict(zip(("partial_w", "partial_dot", "sums_u", "sums_g"), partials, strict=True)),
        "bias": bias if from_products else None, "gamma": gamma,
        **dict(zip(("grad_w", "grad_bias", "grad_gamma", "grad_beta"), gradients, strict=True)),
    }  # fmt: skip
    _plan(problem, layouts, wanted, from_products).start(tensors)


@functools.lru_cache(maxsize=4096)
def _plan(problem: ConvFilm, layouts: host.Layouts, wanted: tuple[bool, ...], from_products: bool) -> Plan:
    partial_w, partial_dot, sums_u, sums_g, bias, gamma, grad_w = layouts
    want_weight, want_bias, want_gamma, want_beta = wanted
    sizes = host.sizes_of(problem)
    splits = 1 if partial_w is None else partial_w.shape[0]
    dots, chunks = (0 if layout is None else layout.shape[1] for layout in (partial_dot, sums_u or sums_g))
    longest = max(dots, chunks, sizes.N * chunks if want_bias else 1)  # run of rows that a program adds
    w_rows, rows = (min(16, host.next_power_of_2(count)) for count in (splits, longest))
    columns = min(_TILE // rows, max(32, host.next_power_of_2(sizes.K)))
    w_columns = _TILE // w_rows
    k_blocks = host.cdiv(sizes.K, columns)
    w_programs = host.cdiv(sizes.K * sizes.products, w_columns) if want_weight else 0
    film_programs = sizes.N * k_blocks if want_gamma or want_beta else 0
    programs = w_programs + film_programs + (k_blocks if want_bias else 0)
    numbers = {
        "N": sizes.N, "C": sizes.C, "K": sizes.K, "splits": splits, "dots": dots, "chunks": chunks,
        "w_programs": w_programs, "film_programs": film_programs,
        **host.strides_of(gamma=gamma, bias=bias, w=grad_w),
        "gamma_offset": float(problem.gamma_offset), "KH": sizes.KH, "KW": sizes.KW,
        "POST": problem.film_position == "post",
        # plain PyTorch's dgamma sums g * relu(z), which is NaN where g is not finite though relu is off there
        "NAN_FROM_G": from_products and sums_g is not None and problem.activation == "relu",
        "WIDE": host.needs_64_bits(*layouts),
        # over many positions a float32 would lose digits that PyTorch's sums keep; not all of Intel's GPUs have float64
        "SUM": tl.float32 if host.gpu(problem.device) == "intel" else tl.float64,
        "W_ROWS": w_rows, "W_COLUMNS": w_columns, "ROWS": rows, "COLUMNS": columns,
    }  # fmt: skip
    return Plan(finish_kernel, programs, numbers, problem.device, 4, 2)
