"""dx = conv_transpose(gamma * u, W), with u = g * slope(bits) and gamma * u formed while loading."""

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...problems.conv_film import ConvFilm
from . import launch as host
from .tiles import index, load_gradient, load_per_channel, multiply, sample_and_position, store_tile, sum_type
from .tuning import Entry


@triton.jit
def first_tap(remainder, KERNEL: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, STEP: tl.constexpr):
    """The first kernel tap k with k * DILATION = remainder (mod STRIDE), or KERNEL where there is none."""
    tap = remainder * 0 + KERNEL
    for i in tl.static_range(0, min(KERNEL, STEP)):
        tap = tl.where((i * DILATION) % STRIDE == remainder, i, tap)
    return tap


@triton.jit(do_not_specialize=["N"])
def grad_input_kernel(
    g, bits, w, gamma, grad_x,
    N, C, H, W, K, OH, OW, PH, PW,
    g_sn, g_sc, g_sh, g_sw, w_sn, w_sc, w_sh, w_sw, gamma_sn, gamma_sk, x_sn, x_sk, x_sp, bits_sn, bits_sk, bits_sp,
    lower_slope: tl.constexpr, gamma_offset: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    STEP_H: tl.constexpr, STEP_W: tl.constexpr,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    G_LAST: tl.constexpr, X_LAST: tl.constexpr, ONE_SAMPLE: tl.constexpr, WIDE: tl.constexpr,
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

    # dx[p, c] = sum_(tap, k) (gamma * u)[p - tap, k] W[k, tap, c]
    acc = tl.zeros((BLOCK_P, BLOCK_C), sum_type(g.dtype.element_ty))
    ROW: tl.constexpr = 1 if G_LAST else 0
    k_blocks = tl.cdiv(K, BLOCK_K)
    for step in range(0, taps_h * taps_w * k_blocks):
        tap = step // k_blocks
        k0 = (step - tap * k_blocks) * BLOCK_K
        tap_h = tap // taps_w
        tap_w = tap - tap_h * taps_w
        oh = oh0 - tap_h * (DH * STEP_H // SH)
        ow = ow0 - tap_w * (DW * STEP_W // SW)
        inside = p_valid & (oh >= 0) & (oh < OH) & (ow >= 0) & (ow < OW)
        g_offset = n * g_sn + oh * g_sh + ow * g_sw
        bits_offset = n * bits_sn + (oh * OW + ow) * bits_sp
        _, dz = load_gradient(
            g, bits, g_offset, bits_offset, inside, k0, K, g_sc, bits_sk, lower_slope, ACTIVATION, G_LAST, WIDE, BLOCK_K
        )
        k = index(k0 + tl.arange(0, BLOCK_K), WIDE)
        k_valid = k < K
        if gamma is not None:
            scale = load_per_channel(gamma, n, n_valid, k, k_valid, gamma_sn, gamma_sk, ROW, ONE_SAMPLE) + gamma_offset
            dz = tl.where(tl.expand_dims(inside, ROW), dz * scale, 0.0)  # outside the output, where gamma may be inf
        else:
            dz *= 1.0 + gamma_offset
        dz = dz.to(g.dtype.element_ty)
        if not G_LAST:
            dz = tl.trans(dz)
        kh = kh0 + tap_h * STEP_H
        kw = kw0 + tap_w * STEP_W
        w_offset = (k * w_sn + kh * w_sh + kw * w_sw)[:, None] + (c * w_sc)[None, :]
        w_tile = tl.load(w + w_offset, mask=k_valid[:, None] & (c < C)[None, :], other=0.0)
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
    programs, plan = _plan(problem, entry, host.precision(problem), host.layouts(grad, weight, gamma))
    bits = None if problem.activation == "none" else kept
    tensors = {"g": grad, "bits": bits, "w": weight, "gamma": gamma, "grad_x": grad_x}
    host.launch(grad_input_kernel, programs, {**tensors, **plan}, problem.device, *entry.launch)
    return grad_x


@functools.lru_cache(maxsize=4096)
def _plan(problem: ConvFilm, entry: Entry, how: str, layouts: host.Layouts) -> tuple[int, dict[str, object]]:
    """The number of programs, and the kernel's arguments beside the tensors."""
    grad, weight, gamma = layouts
    sizes, last = host.sizes_of(problem), problem.channels_last
    positions = host.cdiv(sizes.H, sizes.SH) * host.cdiv(sizes.W, sizes.SW)  # of one remainder
    one_sample, blocks = host.position_blocks(sizes.N, positions, entry.positions)
    return blocks * sizes.SH * sizes.SW * host.cdiv(sizes.C, entry.channels), {
        **{name: getattr(sizes, name) for name in ("N", "C", "H", "W", "K", "OH", "OW", "PH", "PW")},
        **host.strides_of(g=grad, w=weight, gamma=gamma),
        **host.dense_strides("x", sizes.C, sizes.H * sizes.W, last),
        **host.dense_strides("bits", sizes.bit_bytes, sizes.out_positions, last),
        **host.options(problem), **host.geometry(sizes),
        "STEP_H": sizes.SH // math.gcd(sizes.SH, sizes.DH), "STEP_W": sizes.SW // math.gcd(sizes.SW, sizes.DW),
        "PRECISION": how, "G_LAST": grad.channels_fastest, "X_LAST": last, "ONE_SAMPLE": one_sample,
        "WIDE": host.needs_64_bits(*layouts, host.dense(*problem.out_shape), host.dense(*problem.input_shape)),
        "BLOCK_P": entry.positions, "BLOCK_C": entry.channels, "BLOCK_K": entry.products,
    }  # fmt: skip
