"""The gradients of W, b, gamma and beta, from u = g * slope(bits) and the input.

    U[n, k, r] = sum_p u[n, k, p] * patch(x)[n, p, r]      r = (kh, kw, c), a product
    dgamma[n, k] = sum_r W[k, r] U[n, k, r] + b[k] * sum_p u           dW[k, r] = sum_n gamma[n, k] U[n, k, r]

The positions of a sample are cut into chunks; a unit is one chunk of one sample, and a split is a run of units. All
cuts depend on shapes alone. A program walks the units of a split with a tile of U in registers, which after every unit
is dotted with the tile of W and added, times gamma, to a tile of dW. `finish` adds up what the programs leave.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...problems.conv_film import ConvFilm, Tensors
from ..base import Gradients
from . import launch as host
from .finish import finish
from .plan import Plan
from .tiles import index, load_patch, multiply, sum_type, through_activation
from .tuning import Entry
from .walk import load_block, load_block_of_bits, next_block, row_and_column

_PROGRAMS = 512  # aimed at, so that a large GPU has work; a constant, so that every GPU adds in the same order
_PARTIAL = 2**24  # elements of all partial dW together, at most (unless one alone is larger)


@triton.jit(do_not_specialize=["chunks", "chunk_blocks", "units", "split_units", "product_blocks", "programs_r",
                               "row_factor", "row_shift"])  # fmt: skip
def grad_weight_kernel(
    g, bits, x, w, gamma, partial_w, partial_dot, sums_u, sums_g,
    C, H, W, K, OH, OW, PH, PW,
    g_sn, g_sc, g_sh, g_sw, x_sn, x_sc, x_sh, x_sw, w_sn, w_sc, w_sh, w_sw, gamma_sn, gamma_sk,
    bits_sn, bits_sk, bits_sp,
    chunks, chunk_blocks, units, split_units, product_blocks, programs_r, row_factor, row_shift,
    lower_slope: tl.constexpr, gamma_offset: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, PAIRED: tl.constexpr,
    FLAT: tl.constexpr, SUMS_INSIDE: tl.constexpr, ONES: tl.constexpr, EVEN_K: tl.constexpr, G_FLAT: tl.constexpr,
    G_LAST: tl.constexpr, X_LAST: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    # Programs that share a tile of u are neighbours; of these, one past the products sums u and g.
    pid = tl.program_id(0)
    r_block = pid % programs_r
    k_blocks = tl.cdiv(K, BLOCK_K)
    k0 = (pid // programs_r % k_blocks) * BLOCK_K
    split = pid // programs_r // k_blocks
    unit = split * split_units
    sample = unit // chunks
    first = (unit - sample * chunks) * chunk_blocks * BLOCK_P
    block = 0
    steps = tl.minimum(split_units, units - unit) * chunk_blocks
    positions = OH * OW
    k = index(k0 + tl.arange(0, BLOCK_K), WIDE)
    k_valid = k < K
    P_AXIS: tl.constexpr = 0 if G_LAST else 1  # of a tile of u as it is loaded
    ACC: tl.constexpr = sum_type(x.dtype.element_ty)
    zeros = tl.zeros((BLOCK_P, BLOCK_K) if G_LAST else (BLOCK_K, BLOCK_P), ACC)
    sum_u = zeros
    sum_g = zeros
    # bits are read a block ahead
    packed = load_block_of_bits(
        bits, index(sample, WIDE), first, k0, K, unit < units, positions, bits_sn, bits_sk, bits_sp,
        ACTIVATION, EVEN_K, G_LAST, WIDE, BLOCK_P, BLOCK_K,
    )  # fmt: skip

    if r_block < product_blocks:
        if FLAT:
            r = r_block * BLOCK_R + tl.arange(0, BLOCK_R)
            tap = r // C
            c = r - tap * C
            r_valid = r < KH * KW * C
        else:
            c_blocks = tl.cdiv(C, BLOCK_R)
            tap = r_block // c_blocks if KH * KW > 1 else 0  # of one tap: in constants, which take no registers
            c = (r_block - tap * c_blocks) * BLOCK_R + tl.arange(0, BLOCK_R)
            r = tap * C + c
            r_valid = c < C
        kh = tap // KW
        kw = tap - kh * KW
        c = index(c, WIDE)
        tile_valid = k_valid[:, None] & r_valid[None, :]
        U = tl.zeros((BLOCK_K, BLOCK_R), ACC)
        grad_w = tl.zeros((BLOCK_K, BLOCK_R), ACC)
        for _ in range(0, steps):
            n = index(sample, WIDE)
            g_tile = load_block(
                g, n, first, k, k_valid, positions, OW, row_factor, row_shift, g_sn, g_sc, g_sh, g_sw,
                G_FLAT, EVEN_K, G_LAST, WIDE, BLOCK_P,
            )  # fmt: skip
            u_tile = through_activation(g_tile, packed, lower_slope, ACTIVATION, PAIRED, G_LAST)
            q = first + tl.arange(0, BLOCK_P)
            oh, ow = row_and_column(q, OW, row_factor, row_shift, WIDE)
            patch = load_patch(
                x + n * x_sn, oh * SH, ow * SW, q < positions, kh * DH - PH, kw * DW - PW, c, r_valid, H, W,
                x_sc, x_sh, x_sw, FLAT, ONES, X_LAST,
            )  # fmt: skip
            unit_after, sample_after, block_after, first_after = next_block(
                unit, sample, block, first, chunks, chunk_blocks, BLOCK_P
            )
            packed = load_block_of_bits(
                bits, index(sample_after, WIDE), first_after, k0, K, unit_after < units, positions,
                bits_sn, bits_sk, bits_sp, ACTIVATION, EVEN_K, G_LAST, WIDE, BLOCK_P, BLOCK_K,
            )  # fmt: skip
            u = u_tile.to(x.dtype.element_ty)
            if G_LAST:
                u = tl.trans(u)
            U = multiply(u, patch, U, PRECISION)
            if SUMS_INSIDE:
                if not ONES:
                    sum_u += u_tile
                if sums_g is not None:
                    sum_g += g_tile
            if block == chunk_blocks - 1:  # the unit is done: both uses of its U
                if partial_dot is not None:
                    w_offset = (k * w_sn)[:, None] + (c * w_sc + kh * w_sh + kw * w_sw)[None, :]
                    w_tile = tl.load(w + w_offset, mask=tile_valid, other=0.0).to(ACC)
                    dots = tl.sum(tl.where(tile_valid, w_tile * U, 0.0), axis=1)
                    tl.store(partial_dot + (index(unit, WIDE) * product_blocks + r_block) * K + k, dots, mask=k_valid)
                if partial_w is not None:
                    scale = tl.full((BLOCK_K,), 1.0, ACC)
                    if gamma is not None:
                        scale = tl.load(gamma + n * gamma_sn + k * gamma_sk, mask=k_valid, other=0.0).to(ACC)
                    grad_w += (scale + gamma_offset)[:, None] * U
                if SUMS_INSIDE:
                    if ONES:
                        of_u = tl.sum(tl.where((r == KH * KW * C)[None, :], U, 0.0), axis=1)
                    else:
                        of_u = tl.sum(sum_u, axis=P_AXIS)
                    tl.store(sums_u + index(unit, WIDE) * K + k, of_u, mask=k_valid)
                    sum_u = zeros
                    if sums_g is not None:
                        tl.store(sums_g + index(unit, WIDE) * K + k, tl.sum(sum_g, axis=P_AXIS), mask=k_valid)
                        sum_g = zeros
                U = tl.zeros((BLOCK_K, BLOCK_R), ACC)
            unit, sample, block, first = unit_after, sample_after, block_after, first_after
        if partial_w is not None:
            offset = ((index(split, WIDE) * K + k) * (KH * KW * C))[:, None] + r[None, :]
            tl.store(partial_w + offset, grad_w, mask=tile_valid)
    elif sums_u is not None and not SUMS_INSIDE:
        for _ in range(0, steps):
            g_tile = load_block(
                g, index(sample, WIDE), first, k, k_valid, positions, OW, row_factor, row_shift, g_sn, g_sc, g_sh, g_sw,
                G_FLAT, EVEN_K, G_LAST, WIDE, BLOCK_P,
            )  # fmt: skip
            sum_u += through_activation(g_tile, packed, lower_slope, ACTIVATION, PAIRED, G_LAST)
            sum_g += g_tile
            if block == chunk_blocks - 1:
                tl.store(sums_u + index(unit, WIDE) * K + k, tl.sum(sum_u, axis=P_AXIS), mask=k_valid)
                sum_u = zeros
                if sums_g is not None:
                    tl.store(sums_g + index(unit, WIDE) * K + k, tl.sum(sum_g, axis=P_AXIS), mask=k_valid)
                    sum_g = zeros
            unit, sample, block, first = next_block(unit, sample, block, first, chunks, chunk_blocks, BLOCK_P)
            packed = load_block_of_bits(
                bits, index(sample, WIDE), first, k0, K, unit < units, positions, bits_sn, bits_sk, bits_sp,
                ACTIVATION, EVEN_K, G_LAST, WIDE, BLOCK_P, BLOCK_K,
            )  # fmt: skip


class Cut(NamedTuple):
    """How the positions and samples are shared out."""

    chunks: int  # of a sample
    chunk_blocks: int  # of a chunk
    splits: int
    split_units: int  # of a split


def cut_of(sizes: host.Sizes, entry: Entry, tiles: int) -> Cut:
    """The cut for `tiles` tiles of dW, from shapes alone."""
    blocks = host.cdiv(sizes.out_positions, entry.positions)
    wanted = max(1, min(_PROGRAMS // max(tiles, 1), _PARTIAL // max(sizes.K * sizes.products, 1)))
    chunks = min(host.cdiv(wanted, sizes.N), blocks)
    chunk_blocks = host.cdiv(blocks, chunks)
    chunks = host.cdiv(blocks, chunk_blocks)
    split_units = host.cdiv(sizes.N * chunks, wanted)
    return Cut(chunks, chunk_blocks, host.cdiv(sizes.N * chunks, split_units), split_units)


def grad_weight(
    problem: ConvFilm,
    grad: Tensor,
    kept: Tensor,
    tensors: Tensors,
    wanted: Sequence[bool],
    entry: Entry,
) -> Gradients:
    """(dW, db, dgamma, dbeta), None where `wanted` says so; dW in the weight's memory format."""
    input, weight, bias, gamma, _ = tensors
    wanted = tuple(map(bool, wanted))
    want_weight, want_bias, want_gamma, want_beta = wanted
    n_k = (problem.batch, problem.out_channels)
    grad_w = torch.empty_like(weight, memory_format=host.weight_format(weight)) if want_weight else None
    grad_bias = grad.new_empty(n_k[1]) if want_bias else None
    grad_gamma, grad_beta = (grad.new_empty(n_k) if asked else None for asked in (want_gamma, want_beta))
    results = (grad_w, grad_bias, grad_gamma, grad_beta)
    if grad.numel() == 0:
        return tuple(None if result is None else result.zero_() for result in results)

    weight = host.packed_weight(weight, entry.flat or not want_gamma)
    layouts = host.layouts(grad, input, weight, gamma)
    how = host.precision(problem), host.is_paired(problem)
    plan, shapes = _plan(problem, entry, *how, layouts, wanted, bias is not None)
    partials = tuple(
        None if shape is None else torch.empty(shape, dtype=host.sum_dtype(problem), device=problem.device)
        for shape in shapes
    )
    tensors = {
        "g": grad, "bits": None if problem.activation == "none" else kept, "x": input, "w": weight, "gamma": gamma,
        **dict(zip(("partial_w", "partial_dot", "sums_u", "sums_g"), partials, strict=True)),
    }  # fmt: skip
    plan.start(tensors)
    finish(problem, partials, bias, gamma, results)
    return results


@functools.lru_cache(maxsize=4096)
def _plan(
    problem: ConvFilm,
    entry: Entry,
    how: str,
    paired: bool,
    layouts: host.Layouts,
    wanted: tuple[bool, ...],
    has_bias: bool,
) -> tuple[Plan, tuple[tuple[int, ...] | None, ...]]:
    """And the shapes of partial_w, partial_dot, sums_u and sums_g."""
    grad, input, weight, gamma = layouts
    want_weight, want_bias, want_gamma, want_beta = wanted
    sizes, post = host.sizes_of(problem), problem.film_position == "post"
    product_blocks = 0
    if want_weight or want_gamma:
        per_tap = host.cdiv(sizes.C, entry.products)
        product_blocks = host.cdiv(sizes.products, entry.products) if entry.flat else sizes.KH * sizes.KW * per_tap
    g_for_gamma = want_gamma and post and problem.activation == "relu"  # see NAN_FROM_G in finish.py
    want_sums = want_bias or want_beta or g_for_gamma or (want_gamma and has_bias)
    sums_inside = want_sums and product_blocks == 1
    # a tensor core cuts float32 to tf32
    ones = sums_inside and entry.flat and sizes.products % entry.products != 0 and how != "tf32"
    programs_r = product_blocks + (want_sums and not sums_inside)
    k_blocks = host.cdiv(sizes.K, entry.channels)
    cut = cut_of(sizes, entry, programs_r * k_blocks)
    sums = (sizes.N, cut.chunks, sizes.K)
    partials = (
        (cut.splits, sizes.K, sizes.products) if want_weight else None,
        (sizes.N, cut.chunks * product_blocks, sizes.K) if want_gamma else None,
        sums if want_sums else None,
        sums if g_for_gamma or (want_beta and post) else None,
    )
    strides = host.strides_of(g=grad, x=input, w=weight, gamma=gamma)
    large = [host.dense(*shape) for shape in partials if shape is not None] + [host.dense(*problem.out_shape)]
    numbers = {
        **{name: getattr(sizes, name) for name in ("C", "H", "W", "K", "OH", "OW", "PH", "PW")},
        **strides,
        **host.dense_strides("bits", sizes.bit_bytes, sizes.out_positions, problem.channels_last),
        "chunks": cut.chunks, "chunk_blocks": cut.chunk_blocks, "units": sizes.N * cut.chunks,
        "split_units": cut.split_units, "product_blocks": product_blocks, "programs_r": programs_r,
        **dict(zip(("row_factor", "row_shift"), host.reciprocal(sizes.OW), strict=True)),
        **host.options(problem), **host.geometry(sizes), "PRECISION": how, "PAIRED": paired,
        "FLAT": entry.flat, "SUMS_INSIDE": sums_inside, "ONES": ones, "EVEN_K": sizes.K % entry.channels == 0,
        "G_FLAT": strides["g_sh"] == strides["g_sw"] * sizes.OW,
        "G_LAST": grad.channels_fastest, "X_LAST": input.channels_fastest,
        "WIDE": host.needs_64_bits(*layouts, *large),
        "BLOCK_P": entry.positions, "BLOCK_K": entry.channels, "BLOCK_R": entry.products,
    }  # fmt: skip
    programs = programs_r * k_blocks * cut.splits
    return Plan(grad_weight_kernel, programs, numbers, problem.device, *entry.launch), partials
