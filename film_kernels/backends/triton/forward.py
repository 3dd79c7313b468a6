"""y = FiLM(act(conv(x, W) + b)), and one bit an element of where the activation was on its upper branch."""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...problems.conv_film import ConvFilm, Tensors
from . import launch as host
from .tiles import (
    index,
    load_patch,
    load_per_channel,
    lower_branch,
    multiply,
    pack_bits,
    sample_and_position,
    store_tile,
    sum_type,
)
from .tuning import Entry


@triton.jit(do_not_specialize=["N"])
def forward_kernel(
    x, w, bias, gamma, beta, y, bits,
    N, C, H, W, K, OH, OW, PH, PW,
    x_sn, x_sc, x_sh, x_sw, w_sn, w_sc, w_sh, w_sw, gamma_sn, gamma_sk, beta_sn, beta_sk, bias_sk,
    y_sn, y_sk, y_sp, bits_sn, bits_sk, bits_sp,
    lower_slope: tl.constexpr, gamma_offset: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    ACTIVATION: tl.constexpr, POST: tl.constexpr, PRECISION: tl.constexpr,
    FLAT: tl.constexpr, X_LAST: tl.constexpr, Y_LAST: tl.constexpr, ONE_SAMPLE: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    # Rows of the tile are output positions, columns output channels; programs that share positions are neighbours.
    pid = tl.program_id(0)
    k_blocks = tl.cdiv(K, BLOCK_K)
    p_block = pid // k_blocks
    k = index((pid - p_block * k_blocks) * BLOCK_K + tl.arange(0, BLOCK_K), WIDE)
    k_valid = k < K
    n, q = sample_and_position(index(p_block, WIDE), OH * OW, BLOCK_P, ONE_SAMPLE)
    n_valid = n < N
    p_valid = (q < OH * OW) & n_valid
    oh = q // OW
    h0 = oh * SH - PH
    w0 = (q - oh * OW) * SW - PW
    sample_offset = n * x_sn + tl.zeros_like(q)

    # z[p, k] = sum_r patch(x)[p, r] W[k, r]; products r = (kh, kw, c) come by taps, or FLAT: all numbered through.
    ACC: tl.constexpr = sum_type(x.dtype.element_ty)
    acc = tl.zeros((BLOCK_P, BLOCK_K), ACC)
    c_blocks = tl.cdiv(C, BLOCK_R)
    steps = tl.cdiv(KH * KW * C, BLOCK_R) if FLAT else KH * KW * c_blocks
    for step in range(0, steps):
        if FLAT:
            r = step * BLOCK_R + tl.arange(0, BLOCK_R)
            tap = r // C
            c = index(r - tap * C, WIDE)
            c_valid = r < KH * KW * C
        else:
            tap = step // c_blocks
            c = index((step - tap * c_blocks) * BLOCK_R + tl.arange(0, BLOCK_R), WIDE)
            c_valid = c < C
        kh = tap // KW
        kw = tap - kh * KW
        patch = load_patch(
            x, sample_offset, h0, w0, p_valid, kh, kw, c, c_valid, H, W, x_sc, x_sh, x_sw, DH, DW, FLAT, X_LAST
        )
        w_offset = (k * w_sn)[:, None] + (c * w_sc + kh * w_sh + kw * w_sw)[None, :]
        w_tile = tl.load(w + w_offset, mask=k_valid[:, None] & c_valid[None, :], other=0.0)
        acc = multiply(patch, tl.trans(w_tile), acc, PRECISION)

    # Bias, activation, FiLM, bits, one store. !(v <= 0) keeps NaN on the upper branch, where it passes through.
    if bias is not None:
        acc += tl.load(bias + k * bias_sk, mask=k_valid, other=0.0).to(ACC)[None, :]
    scale = tl.full((1, 1), 1.0, ACC) + gamma_offset
    if gamma is not None:
        scale = load_per_channel(gamma, n, n_valid, k, k_valid, gamma_sn, gamma_sk, 1, ONE_SAMPLE) + gamma_offset
    shift = tl.zeros((1, 1), ACC)
    if beta is not None:
        shift = load_per_channel(beta, n, n_valid, k, k_valid, beta_sn, beta_sk, 1, ONE_SAMPLE)
    if not POST:
        acc = scale * acc + shift
    if ACTIVATION != "none":
        upper = (acc <= 0.0) == 0
        if bits is not None:
            byte = index((pid - p_block * k_blocks) * (BLOCK_K // 8) + tl.arange(0, BLOCK_K // 8), WIDE)
            packed = pack_bits(upper, BLOCK_P, BLOCK_K)
            store_tile(bits, n * bits_sn + q * bits_sp, p_valid, byte * bits_sk, byte * 8 < K, packed, Y_LAST)
        acc = tl.where(upper, acc, lower_branch(acc, lower_slope, ACTIVATION))
    if POST:
        acc = scale * acc + shift
    store_tile(y, n * y_sn + q * y_sp, p_valid, k * y_sk, k_valid, acc, Y_LAST)


def forward(problem: ConvFilm, tensors: Tensors, kept: Tensor | None, entry: Entry) -> Tensor:
    """y (N, K, *out) in the problem's memory format; the bits are written into `kept` where it is given."""
    input, weight, bias, gamma, beta = tensors
    y = torch.empty(problem.out_shape, dtype=problem.dtype, device=problem.device, memory_format=problem.memory_format)
    if y.numel() == 0:
        return y
    weight = host.packed_weight(weight, entry.flat)
    programs, plan = _plan(problem, entry, host.precision(problem), host.layouts(input, weight, bias, gamma, beta))
    bits = None if problem.activation == "none" else kept
    given = {"x": input, "w": weight, "bias": bias, "gamma": gamma, "beta": beta, "y": y, "bits": bits}
    host.launch(forward_kernel, programs, {**given, **plan}, problem.device, *entry.launch)
    return y


@functools.lru_cache(maxsize=4096)
def _plan(problem: ConvFilm, entry: Entry, how: str, layouts: host.Layouts) -> tuple[int, dict[str, object]]:
    """The number of programs, and the kernel's arguments beside the tensors."""
    input, weight, bias, gamma, beta = layouts
    sizes, last = host.sizes_of(problem), problem.channels_last
    positions = sizes.out_positions
    one_sample, blocks = host.position_blocks(sizes.N, positions, entry.positions)
    return blocks * host.cdiv(sizes.K, entry.channels), {
        **{name: getattr(sizes, name) for name in ("N", "C", "H", "W", "K", "OH", "OW", "PH", "PW")},
        **host.strides_of(x=input, w=weight, bias=bias, gamma=gamma, beta=beta),
        **host.dense_strides("y", sizes.K, positions, last),
        **host.dense_strides("bits", sizes.bit_bytes, positions, last),
        **host.options(problem), **host.geometry(sizes),
        "POST": problem.film_position == "post", "PRECISION": how, "FLAT": entry.flat,
        "X_LAST": input.channels_fastest, "Y_LAST": last, "ONE_SAMPLE": one_sample,
        "WIDE": host.needs_64_bits(*layouts, host.dense(*problem.out_shape)),
        "BLOCK_P": entry.positions, "BLOCK_K": entry.channels, "BLOCK_R": entry.products,
    }  # fmt: skip
