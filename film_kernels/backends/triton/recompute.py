"""Backward where nothing was kept: z is computed once more, and its gradient and the sums formed of it at once.

dz = scale * u,  db = sum dz,  dbeta = sum g (post) or sum u (pre),  dgamma = sum g * act(z) (post) or sum u * z (pre),
with u = g * act'(v). A tile lies in one sample; `finish` adds up what tiles leave.
"""

import functools
from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ...problems.conv_film import ConvFilm, Tensors
from . import launch as host
from .convolve import convolution, convolve, output_tile
from .film import film_backward, load_film
from .finish import empty_partials, empty_results, finish
from .plan import Plan
from .tiles import index, store_tile
from .tuning import Entry


@triton.jit
def leave(
    z, k, g, gamma, beta, dz, partial_gamma, sums_u, sums_g, p_block, n, q, oh, ow, p_valid,
    K, gamma_sn, gamma_sk, beta_sn, beta_sk, g_sn, g_sc, g_sh, g_sw, z_sn, z_sk, z_sp,
    lower_slope: tl.constexpr, gamma_offset: tl.constexpr,
    ACTIVATION: tl.constexpr, POST: tl.constexpr, G_LAST: tl.constexpr, Z_LAST: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Of a (positions, channels) tile of z, its gradient and the sums over its positions."""
    k_valid = k < K
    scale, shift = load_film(
        gamma, beta, n, True, k, k_valid, gamma_sn, gamma_sk, beta_sn, beta_sk, gamma_offset, z.dtype, True
    )
    ROW: tl.constexpr = 1 if G_LAST else 0
    g_offset = tl.expand_dims(n * g_sn + oh * g_sh + ow * g_sw, ROW) + tl.expand_dims(k * g_sc, 1 - ROW)
    g_valid = tl.expand_dims(p_valid, ROW) & tl.expand_dims(k_valid, 1 - ROW)
    g_tile = tl.load(g + g_offset, mask=g_valid, other=0.0)
    if not G_LAST:
        g_tile = tl.trans(g_tile)
    g_tile = g_tile.to(z.dtype)
    u, d = film_backward(g_tile, z, scale, shift, lower_slope, ACTIVATION, POST)
    if dz is not None:
        store_tile(dz, n * z_sn + q * z_sp, p_valid, k * z_sk, k_valid, scale * u, Z_LAST)
    # A row past the sample's end has no part in its sums, whatever nothing becomes where a factor is not finite.
    row_valid = p_valid[:, None]
    out = index(p_block, WIDE) * K + k
    if partial_gamma is not None:
        tl.store(partial_gamma + out, tl.sum(tl.where(row_valid, d, 0.0), axis=0), mask=k_valid)
    if sums_u is not None:
        tl.store(sums_u + out, tl.sum(tl.where(row_valid, u, 0.0), axis=0), mask=k_valid)
    if sums_g is not None:
        tl.store(sums_g + out, tl.sum(g_tile, axis=0), mask=k_valid)


@triton.jit
def recompute_kernel(
    x, w, bias, gamma, beta, g, dz, partial_gamma, sums_u, sums_g,
    N, C, H, W, K, OH, OW, PH, PW,
    x_sn, x_sc, x_sh, x_sw, w_sn, w_sc, w_sh, w_sw, gamma_sn, gamma_sk, beta_sn, beta_sk, bias_sk,
    g_sn, g_sc, g_sh, g_sw, z_sn, z_sk, z_sp,
    lower_slope: tl.constexpr, gamma_offset: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    ACTIVATION: tl.constexpr, POST: tl.constexpr, PRECISION: tl.constexpr,
    FLAT_C: tl.constexpr, EVEN_C: tl.constexpr, X_LAST: tl.constexpr, G_LAST: tl.constexpr, Z_LAST: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    p_block, k_block, n, q, oh, ow = output_tile(K, OH * OW, OW, BLOCK_P, BLOCK_K, True, WIDE)
    k = index(k_block * BLOCK_K + tl.arange(0, BLOCK_K), WIDE)
    k_valid = k < K
    p_valid = q < OH * OW
    z = convolve(
        x, w, bias, n, oh * SH - PH, ow * SW - PW, p_valid, k, k_valid,
        C, H, W, x_sn, x_sc, x_sh, x_sw, w_sn, w_sc, w_sh, w_sw, bias_sk,
        KH, KW, DH, DW, PRECISION, FLAT_C, EVEN_C, X_LAST, WIDE, BLOCK_P, BLOCK_K, BLOCK_R,
    )  # fmt: skip
    if BLOCK_K < 128:
        leave(
            z, k, g, gamma, beta, dz, partial_gamma, sums_u, sums_g, p_block, n, q, oh, ow, p_valid,
            K, gamma_sn, gamma_sk, beta_sn, beta_sk, g_sn, g_sc, g_sh, g_sw, z_sn, z_sk, z_sp,
            lower_slope, gamma_offset, ACTIVATION, POST, G_LAST, Z_LAST, WIDE,
        )  # fmt: skip
    else:  # in two halves, for which there are registers
        HALF: tl.constexpr = BLOCK_K // 2
        halves = tl.split(tl.permute(tl.reshape(z, (BLOCK_P, 2, HALF)), (0, 2, 1)))
        for i in tl.static_range(0, 2):
            leave(
                halves[i], index(k_block * BLOCK_K + i * HALF + tl.arange(0, HALF), WIDE),
                g, gamma, beta, dz, partial_gamma, sums_u, sums_g, p_block, n, q, oh, ow, p_valid,
                K, gamma_sn, gamma_sk, beta_sn, beta_sk, g_sn, g_sc, g_sh, g_sw, z_sn, z_sk, z_sp,
                lower_slope, gamma_offset, ACTIVATION, POST, G_LAST, Z_LAST, WIDE,
            )  # fmt: skip


def recompute(
    problem: ConvFilm, grad: Tensor, tensors: Tensors, wanted: Sequence[bool], entry: Entry
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """(dz, db, dgamma, dbeta), None where `wanted` says so; `grad` of any strides, dz dense in the problem's memory
    format."""
    input, weight, bias, gamma, beta = tensors
    results = empty_results(problem, grad, wanted)
    if grad.numel() == 0:
        return tuple(None if result is None else result.zero_() for result in results)
    weight = host.packed_weight(weight, entry.flat)
    layouts = host.layouts(input, weight, bias, gamma, beta, grad)
    plan = _plan(problem, entry, host.precision(problem), layouts)
    partials = empty_partials(problem, _chunks(problem, entry), wanted)
    given = {
        "x": input, "w": weight, "bias": bias, "gamma": gamma, "beta": beta, "g": grad, "dz": results[0],
        **dict(zip(("partial_gamma", "sums_u", "sums_g"), partials, strict=True)),
    }  # fmt: skip
    plan.start(given)
    finish(problem, (None, *partials), bias, gamma, (None, *results[1:]), from_products=False)
    return results


def _chunks(problem: ConvFilm, entry: Entry) -> int:
    """Tiles of a sample's positions."""
    return host.cdiv(host.sizes_of(problem).out_positions, entry.positions)


@functools.lru_cache(maxsize=4096)
def _plan(problem: ConvFilm, entry: Entry, how: str, layouts: host.Layouts) -> Plan:
    input, weight, bias, gamma, beta, grad = layouts
    sizes, last = host.sizes_of(problem), problem.channels_last
    positions = sizes.out_positions
    chunks = _chunks(problem, entry)
    sums = host.dense(sizes.N, chunks, sizes.K)
    numbers = {
        **convolution(problem, entry, how, input),
        **host.strides_of(x=input, w=weight, bias=bias, gamma=gamma, beta=beta, g=grad),
        **host.dense_strides("z", sizes.K, positions, last), "G_LAST": grad.channels_fastest, "Z_LAST": last,
        "WIDE": host.needs_64_bits(*layouts, sums, host.dense(*problem.out_shape)),
    }  # fmt: skip
    programs = sizes.N * chunks * host.cdiv(sizes.K, entry.channels)
    return Plan(recompute_kernel, programs, numbers, problem.device, *entry.launch)
