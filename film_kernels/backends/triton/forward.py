"""y = FiLM(act(conv(x, W) + b)), and one bit an element of where the activation was on its upper branch."""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...problems.conv_film import ConvFilm, Tensors
from . import launch as host
from .convolve import convolution, convolve, output_tile
from .film import film_forward, load_film, pre_activation
from .plan import Plan
from .tiles import index, pack_bits, store_tile, sum_type
from .tuning import Entry


@triton.jit(do_not_specialize=["N"])
def forward_kernel(
    x, w, bias, gamma, beta, y, bits, bias_copy,
    N, C, H, W, K, OH, OW, PH, PW,
    x_sn, x_sc, x_sh, x_sw, w_sn, w_sc, w_sh, w_sw, gamma_sn, gamma_sk, beta_sn, beta_sk, bias_sk,
    y_sn, y_sk, y_sp, bits_sn, bits_sk, bits_sp,
    lower_slope: tl.constexpr, gamma_offset: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    ACTIVATION: tl.constexpr, POST: tl.constexpr, PRECISION: tl.constexpr,
    FLAT_C: tl.constexpr, EVEN_C: tl.constexpr, X_LAST: tl.constexpr, Y_LAST: tl.constexpr,
    ONE_SAMPLE: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    p_block, k_block, n, q, oh, ow = output_tile(K, OH * OW, OW, BLOCK_P, BLOCK_K, ONE_SAMPLE, WIDE)
    k = index(k_block * BLOCK_K + tl.arange(0, BLOCK_K), WIDE)
    k_valid = k < K
    n_valid = n < N
    p_valid = (q < OH * OW) & n_valid
    ACC: tl.constexpr = sum_type(x.dtype.element_ty)
    z = convolve(
        x, w, bias, n, oh * SH - PH, ow * SW - PW, p_valid, k, k_valid,
        C, H, W, x_sn, x_sc, x_sh, x_sw, w_sn, w_sc, w_sh, w_sw, bias_sk,
        KH, KW, DH, DW, PRECISION, FLAT_C, EVEN_C, X_LAST, WIDE, BLOCK_P, BLOCK_K, BLOCK_R,
    )  # fmt: skip
    scale, shift = load_film(
        gamma, beta, n, n_valid, k, k_valid, gamma_sn, gamma_sk, beta_sn, beta_sk, gamma_offset, ACC, ONE_SAMPLE
    )
    if bias_copy is not None:
        tl.store(bias_copy + k, tl.load(bias + k * bias_sk, mask=k_valid), mask=k_valid & (p_block == 0))
    if bits is not None:
        upper = (pre_activation(z, scale, shift, POST) <= 0.0) == 0  # NaN, which passes through, is on the upper branch
        byte = index(k_block * (BLOCK_K // 8) + tl.arange(0, BLOCK_K // 8), WIDE)
        packed = pack_bits(upper, BLOCK_P, BLOCK_K)
        store_tile(bits, n * bits_sn + q * bits_sp, p_valid, byte * bits_sk, byte * 8 < K, packed, Y_LAST)
    result = film_forward(z, scale, shift, lower_slope, ACTIVATION, POST)
    store_tile(y, n * y_sn + q * y_sp, p_valid, k * y_sk, k_valid, result, Y_LAST)


def forward(
    problem: ConvFilm, tensors: Tensors, kept: Tensor | None, entry: Entry, bias_copy: Tensor | None = None
) -> Tensor:
    """y (N, K, *out) in the problem's memory format; the bits are written into `kept`, and a copy of the bias into
    `bias_copy`, where they are given."""
    input, weight, bias, gamma, beta = tensors
    y = torch.empty(problem.out_shape, dtype=problem.dtype, device=problem.device, memory_format=problem.memory_format)
    if y.numel() == 0:
        return y
    weight = host.packed_weight(weight, entry.flat)
    plan = _plan(problem, entry, host.precision(problem), host.layouts(input, weight, bias, gamma, beta))
    bits = None if problem.activation == "none" else kept
    given = {"x": input, "w": weight, "bias": bias, "gamma": gamma, "beta": beta, "y": y, "bits": bits,
             "bias_copy": bias_copy}  # fmt: skip
    plan.start(given)
    return y


@functools.lru_cache(maxsize=4096)
def _plan(problem: ConvFilm, entry: Entry, how: str, layouts: host.Layouts) -> Plan:
    input, weight, bias, gamma, beta = layouts
    sizes, last = host.sizes_of(problem), problem.channels_last
    positions = sizes.out_positions
    one_sample, blocks = host.position_blocks(sizes.N, positions, entry.positions)
    numbers = {
        **convolution(problem, entry, how, input),
        **host.strides_of(x=input, w=weight, bias=bias, gamma=gamma, beta=beta),
        **host.dense_strides("y", sizes.K, positions, last),
        **host.dense_strides("bits", sizes.bit_bytes, positions, last),
        "Y_LAST": last, "ONE_SAMPLE": one_sample,
        "WIDE": host.needs_64_bits(*layouts, host.dense(*problem.out_shape)),
    }  # fmt: skip
    return Plan(forward_kernel, blocks * host.cdiv(sizes.K, entry.channels), numbers, problem.device, *entry.launch)
