"""dx = conv_transpose(gamma * u, W), with u = g * slope(bits) and gamma * u formed while loading."""

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...problems.conv_film import ConvFilm
from . import launch as host
from .convolve import has_bits, inside_taps, tap_inside
from .plan import Plan
from .tiles import (
    index,
    load_per_channel,
    multiply,
    sample_and_position,
    scaled,
    spread_bits,
    store_tile,
    sum_type,
    where_set,
)
from .tuning import Entry


@triton.jit
def first_tap(remainder, KERNEL: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, STEP: tl.constexpr):
    """The first kernel tap k with k * DILATION = remainder (mod STRIDE), or KERNEL where there is none."""
    tap = remainder * 0 + KERNEL
    for i in tl.static_range(0, min(KERNEL, STEP)):
        tap = tl.where((i * DILATION) % STRIDE == remainder, i, tap)
    return tap


@triton.jit
def load_bits(
    bits, start, taps, oh_start, ow_start, valid, i, j, k0, K, OH, OW, bits_sk, bits_sp,
    ACTIVATION: tl.constexpr, ROW: tl.constexpr, EVEN_K: tl.constexpr, WIDE: tl.constexpr,
    DOWN: tl.constexpr, ASIDE: tl.constexpr, TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The bits of channels k0 .. of tap (i, j), eight of them in a byte, 0 outside the output."""
    if ACTIVATION == "none":
        packed = 0
    else:
        mask = valid & tap_inside(taps, oh_start, ow_start, valid, i, j, OH, OW, TAPS_H, TAPS_W, DOWN, ASIDE)
        if not EVEN_K:
            mask = mask & tl.expand_dims(tl.arange(0, BLOCK_K // 8) * 8 < K - k0, 1 - ROW)
        moved = index(i * DOWN, WIDE) * OW + j * ASIDE
        packed = tl.load(bits + (moved * bits_sp + index(k0 // 8, WIDE) * bits_sk) + start, mask=mask, other=0)
    return packed


@triton.jit(do_not_specialize=["N"])
def grad_input_kernel(
    g, bits, w, gamma, grad_x,
    N, C, H, W, K, OH, OW, PH, PW,
    g_sn, g_sc, g_sh, g_sw, w_sn, w_sc, w_sh, w_sw, gamma_sn, gamma_sk, x_sn, x_sk, x_sp, bits_sn, bits_sk, bits_sp,
    lower_slope: tl.constexpr, gamma_offset: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    STEP_H: tl.constexpr, STEP_W: tl.constexpr,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, PAIRED: tl.constexpr,
    EVEN_K: tl.constexpr, G_LAST: tl.constexpr, X_LAST: tl.constexpr, ONE_SAMPLE: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # Rows of the tile are input positions, columns input channels. With a stride, positions of one remainder (a, b)
    # meet the same kernel taps, and no others: a tile holds one remainder only, so that no product is with nothing.
    pid = tl.program_id(0)
    c_blocks = tl.cdiv(C, BLOCK_C)
    block = pid // c_blocks
    c = index((pid - block * c_blocks) * BLOCK_C + tl.arange(0, BLOCK_C), WIDE)
    remainder = block % (SH * SW)
    a = remainder // SW
    b = remainder - a * SW
    rows = tl.cdiv(H, SH)
    columns = tl.cdiv(W, SW)
    n, q = sample_and_position(index(block // (SH * SW), WIDE), rows * columns, BLOCK_P, ONE_SAMPLE)
    h_step = q // columns
    w_step = q - h_step * columns
    h = h_step * SH + a
    w_ = w_step * SW + b
    n_valid = n < N
    p_valid = (h < H) & (w_ < W) & n_valid

    # oh * SH = h + PH - kh * DH: the taps kh are kh0, kh0 + STEP_H, ..., and oh goes down by DH * STEP_H / SH.
    kh0 = first_tap((a + PH) % SH, KH, SH, DH, STEP_H)
    kw0 = first_tap((b + PW) % SW, KW, SW, DW, STEP_W)
    taps_h = (KH - kh0 + STEP_H - 1) // STEP_H
    taps_w = (KW - kw0 + STEP_W - 1) // STEP_W
    oh0 = h_step + (a + PH - kh0 * DH) // SH
    ow0 = w_step + (b + PW - kw0 * DW) // SW

    # dx[p, c] = sum_(tap, k) (gamma * u)[p - tap, k] W[k, tap, c]; tap (i, j) is kernel tap (kh0, kw0) + (i, j) * STEP
    DOWN: tl.constexpr = -(DH * STEP_H // SH)  # from tap to tap oh moves by this
    ASIDE: tl.constexpr = -(DW * STEP_W // SW)
    TAPS_H: tl.constexpr = (KH + STEP_H - 1) // STEP_H  # at most
    TAPS_W: tl.constexpr = (KW + STEP_W - 1) // STEP_W
    ROW: tl.constexpr = 1 if G_LAST else 0
    acc = tl.zeros((BLOCK_P, BLOCK_C), sum_type(g.dtype.element_ty))
    taps = tl.zeros(p_valid.shape, tl.uint32)
    if has_bits(TAPS_H, TAPS_W):
        taps = inside_taps(oh0, ow0, p_valid, OH, OW, TAPS_H, TAPS_W, DOWN, ASIDE)
    taps = tl.expand_dims(taps, ROW)
    oh_start = tl.expand_dims(oh0, ROW)
    ow_start = tl.expand_dims(ow0, ROW)
    valid = tl.expand_dims(p_valid, ROW)
    lane = index(tl.arange(0, BLOCK_K), WIDE)
    byte = index(tl.arange(0, BLOCK_K // 8), WIDE)
    g_start = tl.expand_dims(n * g_sn + oh0 * g_sh + ow0 * g_sw, ROW) + tl.expand_dims(lane * g_sc, 1 - ROW)
    bits_start = tl.expand_dims(n * bits_sn + (oh0 * OW + ow0) * bits_sp, ROW)
    bits_start += tl.expand_dims(byte * bits_sk, 1 - ROW)
    w_start = (lane * w_sn)[:, None] + (c * w_sc)[None, :]
    steps = taps_h * taps_w * tl.cdiv(K, BLOCK_K)
    i = 0
    j = 0
    k0 = 0
    packed = load_bits(
        bits, bits_start, taps, oh_start, ow_start, valid, i, j, k0, K, OH, OW, bits_sk, bits_sp,
        ACTIVATION, ROW, EVEN_K, WIDE, DOWN, ASIDE, TAPS_H, TAPS_W, BLOCK_K,
    )  # fmt: skip
    for step in range(0, steps):
        inside = tap_inside(taps, oh_start, ow_start, valid, i, j, OH, OW, TAPS_H, TAPS_W, DOWN, ASIDE)
        row = index(i, WIDE)
        column = index(j, WIDE)
        first = index(k0, WIDE)
        mask = inside
        k_valid = lane < K - k0
        if not EVEN_K:
            mask = mask & tl.expand_dims(k_valid, 1 - ROW)
        g_from = g + (row * (DOWN * g_sh) + column * (ASIDE * g_sw) + first * g_sc)
        g_tile = tl.load(g_from + g_start, mask=mask, other=0.0)
        if gamma is not None:
            scale = load_per_channel(gamma, n, n_valid, first + lane, k_valid, gamma_sn, gamma_sk, ROW, ONE_SAMPLE)
            if gamma_offset != 0.0:
                scale += gamma_offset
        else:
            scale = tl.full((1, 1), 1.0, acc.dtype) + gamma_offset
        # 0 outside the output, where gamma may not be finite: no bit is set there
        if ACTIVATION == "relu":
            dz = where_set(scaled(g_tile, scale, PAIRED and gamma_offset == 0.0), packed, PAIRED, G_LAST)
        elif ACTIVATION == "none":
            dz = tl.where(mask, g_tile.to(acc.dtype) * scale, 0.0)
        else:
            upper = spread_bits(packed, g_tile.shape, G_LAST)
            dz = tl.where(mask, g_tile.to(acc.dtype) * tl.where(upper, scale, scale * lower_slope), 0.0)
        dz = dz.to(g.dtype.element_ty)
        if not G_LAST:
            dz = tl.trans(dz)
        w_from = w + (index(kh0 + i * STEP_H, WIDE) * w_sh + index(kw0 + j * STEP_W, WIDE) * w_sw + first * w_sn)
        w_mask = (c < C)[None, :]
        if not EVEN_K:
            w_mask = w_mask & k_valid[:, None]
        w_tile = tl.load(w_from + w_start, mask=w_mask, other=0.0)
        # the next channels, of the last ones of a tap the next tap's first, whose bits are read a step ahead
        k0 += BLOCK_K
        tap_done = k0 >= K
        k0 = tl.where(tap_done, 0, k0)
        j += tap_done.to(tl.int32)
        row_done = j == taps_w
        j = tl.where(row_done, 0, j)
        i += row_done.to(tl.int32)
        packed = load_bits(
            bits, bits_start, taps, oh_start, ow_start, valid & (step + 1 < steps), i, j, k0, K, OH, OW, bits_sk,
            bits_sp, ACTIVATION, ROW, EVEN_K, WIDE, DOWN, ASIDE, TAPS_H, TAPS_W, BLOCK_K,
        )  # fmt: skip
        acc = multiply(dz, w_tile, acc, PRECISION)

    x_position = q if SH * SW == 1 else h * W + w_  # q is known to be contiguous
    store_tile(grad_x, n * x_sn + x_position * x_sp, p_valid, c * x_sk, c < C, acc, X_LAST)


def grad_input(
    problem: ConvFilm, grad: Tensor, kept: Tensor, weight: Tensor, gamma: Tensor | None, entry: Entry
) -> Tensor:
    """dx (N, C, *in) in the input's memory format, from `grad` (N, K, *out) of any strides and the bits."""
    grad_x = torch.empty(
        problem.input_shape, dtype=problem.dtype, device=problem.device, memory_format=problem.memory_format
    )
    if grad_x.numel() == 0:
        return grad_x
    if grad.numel() == 0:
        return grad_x.zero_()
    weight = host.packed_weight(weight, flat=False)
    how = host.precision(problem), host.is_paired(problem)
    plan = _plan(problem, entry, *how, host.layouts(grad, weight, gamma))
    bits = None if problem.activation == "none" else kept
    tensors = {"g": grad, "bits": bits, "w": weight, "gamma": gamma, "grad_x": grad_x}
    plan.start(tensors)
    return grad_x


@functools.lru_cache(maxsize=4096)
def _plan(problem: ConvFilm, entry: Entry, how: str, paired: bool, layouts: host.Layouts) -> Plan:
    grad, weight, gamma = layouts
    sizes, last = host.sizes_of(problem), problem.channels_last
    positions = host.cdiv(sizes.H, sizes.SH) * host.cdiv(sizes.W, sizes.SW)  # of one remainder
    one_sample, blocks = host.position_blocks(sizes.N, positions, entry.positions)
    numbers = {
        **{name: getattr(sizes, name) for name in ("N", "C", "H", "W", "K", "OH", "OW", "PH", "PW")},
        **host.strides_of(g=grad, w=weight, gamma=gamma),
        **host.dense_strides("x", sizes.C, sizes.H * sizes.W, last),
        **host.dense_strides("bits", sizes.bit_bytes, sizes.out_positions, last),
        **host.options(problem), **host.geometry(sizes),
        "STEP_H": sizes.SH // math.gcd(sizes.SH, sizes.DH), "STEP_W": sizes.SW // math.gcd(sizes.SW, sizes.DW),
        "PRECISION": how, "PAIRED": paired,
        "EVEN_K": sizes.K % entry.products == 0, "G_LAST": grad.channels_fastest, "X_LAST": last,
        "ONE_SAMPLE": one_sample,
        "WIDE": host.needs_64_bits(*layouts, host.dense(*problem.out_shape), host.dense(*problem.input_shape)),
        "BLOCK_P": entry.positions, "BLOCK_C": entry.channels, "BLOCK_K": entry.products,
    }  # fmt: skip
    programs = blocks * sizes.SH * sizes.SW * host.cdiv(sizes.C, entry.channels)
    return Plan(grad_input_kernel, programs, numbers, problem.device, *entry.launch)
