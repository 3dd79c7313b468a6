"""Around the library's convolution on a GPU: one pass over its result forward, and one over the gradient backward.

forward     y = FiLM(act(z)), z = raw + b                          raw = conv(x, W), without the bias
backward    dz = gamma * u,  db = sum dz,  dbeta = sum g (post) or sum u (pre),
            dgamma = sum g * act(z) (post) or sum u * z (pre)      u = g * act'(v)
"""

import functools
from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ...problems.conv_film import ConvFilm
from . import launch as host
from .film import film_backward, film_forward
from .finish import empty_partials, empty_results, finish
from .plan import Plan
from .tiles import index, sum_type

_CHUNKS = 512  # programs aimed at where there are few samples and channels


@triton.jit
def channel_values(factor, offset, k_valid, default, ROW: tl.constexpr, ACC: tl.constexpr):
    """bias, gamma or beta of a tile's channels in the type of sums, or `default` where there is none."""
    values = tl.full(k_valid.shape, 0.0, ACC) + default
    if factor is not None:
        values = tl.load(factor + offset, mask=k_valid, other=0.0).to(ACC)
    return tl.expand_dims(values, 1 - ROW)


@triton.jit(do_not_specialize=["chunks", "chunk_blocks"])
def finish_forward_kernel(
    raw, bias, gamma, beta, y, bias_copy, beta_copy,
    K, P, chunks, chunk_blocks, y_sn, y_sk, y_sp, gamma_sn, gamma_sk, beta_sn, beta_sk, bias_sk,
    lower_slope: tl.constexpr, gamma_offset: tl.constexpr,
    ACTIVATION: tl.constexpr, POST: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    ROW: tl.constexpr = 1 if LAST else 0
    ACC: tl.constexpr = sum_type(raw.dtype.element_ty)
    pid = tl.program_id(0)
    k_blocks = tl.cdiv(K, BLOCK_K)
    unit = pid // k_blocks
    k = index(pid % k_blocks * BLOCK_K + tl.arange(0, BLOCK_K), WIDE)
    k_valid = k < K
    n = index(unit // chunks, WIDE)
    bias_row = channel_values(bias, k * bias_sk, k_valid, 0.0, ROW, ACC)
    scale = channel_values(gamma, n * gamma_sn + k * gamma_sk, k_valid, 1.0, ROW, ACC) + gamma_offset
    shift = channel_values(beta, n * beta_sn + k * beta_sk, k_valid, 0.0, ROW, ACC)
    if bias_copy is not None:
        tl.store(bias_copy + k, tl.load(bias + k * bias_sk, mask=k_valid), mask=k_valid & (unit == 0))
    if beta_copy is not None:
        row = tl.load(beta + n * beta_sn + k * beta_sk, mask=k_valid)
        tl.store(beta_copy + n * K + k, row, mask=k_valid & (unit % chunks == 0))

    for block in range(0, chunk_blocks):
        q = index(((unit % chunks) * chunk_blocks + block) * BLOCK_P + tl.arange(0, BLOCK_P), WIDE)
        offset = n * y_sn + tl.expand_dims(q * y_sp, ROW) + tl.expand_dims(k * y_sk, 1 - ROW)
        mask = tl.expand_dims(q < P, ROW) & tl.expand_dims(k_valid, 1 - ROW)
        z = tl.load(raw + offset, mask=mask, other=0.0).to(ACC) + bias_row
        value = film_forward(z, scale, shift, lower_slope, ACTIVATION, POST)
        tl.store(y + offset, value.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["chunks", "chunk_blocks"])
def start_backward_kernel(
    g, raw, bias, gamma, beta, dz, partial_gamma, sums_u, sums_g,
    K, P, OW, chunks, chunk_blocks, g_sn, g_sc, g_sh, g_sw, y_sn, y_sk, y_sp,
    gamma_sn, gamma_sk, beta_sn, beta_sk, bias_sk,
    lower_slope: tl.constexpr, gamma_offset: tl.constexpr,
    ACTIVATION: tl.constexpr, POST: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    ROW: tl.constexpr = 1 if LAST else 0
    ACC: tl.constexpr = sum_type(raw.dtype.element_ty)
    P_AXIS: tl.constexpr = 0 if LAST else 1
    pid = tl.program_id(0)
    k_blocks = tl.cdiv(K, BLOCK_K)
    unit = pid // k_blocks
    k = index(pid % k_blocks * BLOCK_K + tl.arange(0, BLOCK_K), WIDE)
    k_valid = k < K
    n = index(unit // chunks, WIDE)
    bias_row = channel_values(bias, k * bias_sk, k_valid, 0.0, ROW, ACC)
    scale = channel_values(gamma, n * gamma_sn + k * gamma_sk, k_valid, 1.0, ROW, ACC) + gamma_offset
    shift = channel_values(beta, n * beta_sn + k * beta_sk, k_valid, 0.0, ROW, ACC)
    products = tl.zeros((BLOCK_P, BLOCK_K) if LAST else (BLOCK_K, BLOCK_P), ACC)
    sum_u = products
    sum_g = products

    for block in range(0, chunk_blocks):
        q = ((unit % chunks) * chunk_blocks + block) * BLOCK_P + tl.arange(0, BLOCK_P)
        mask = tl.expand_dims(q < P, ROW) & tl.expand_dims(k_valid, 1 - ROW)
        oh = index(q // OW, WIDE)
        ow = index(q % OW, WIDE)
        g_offset = n * g_sn + tl.expand_dims(oh * g_sh + ow * g_sw, ROW) + tl.expand_dims(k * g_sc, 1 - ROW)
        g_tile = tl.load(g + g_offset, mask=mask, other=0.0).to(ACC)
        offset = n * y_sn + tl.expand_dims(index(q, WIDE) * y_sp, ROW) + tl.expand_dims(k * y_sk, 1 - ROW)
        z = tl.load(raw + offset, mask=mask, other=0.0).to(ACC) + bias_row
        u, d = film_backward(g_tile, z, scale, shift, lower_slope, ACTIVATION, POST)
        if dz is not None:
            tl.store(dz + offset, (scale * u).to(dz.dtype.element_ty), mask=mask)
        # an element past the end has no part in the sums, whatever nothing becomes where a factor is not finite
        products += tl.where(mask, d, 0.0)
        sum_u += tl.where(mask, u, 0.0)
        sum_g += g_tile

    out = index(unit, WIDE) * K + k
    if partial_gamma is not None:
        tl.store(partial_gamma + out, tl.sum(products, axis=P_AXIS), mask=k_valid)
    if sums_u is not None:
        tl.store(sums_u + out, tl.sum(sum_u, axis=P_AXIS), mask=k_valid)
    if sums_g is not None:
        tl.store(sums_g + out, tl.sum(sum_g, axis=P_AXIS), mask=k_valid)


def finish_forward(
    problem: ConvFilm,
    raw: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    out: Tensor,
    copies: Sequence[Tensor | None] = (None, None),
) -> Tensor:
    """y into `out`, which may be `raw`: both (N, K, *out), dense in the problem's memory format; returns `out`.

    `copies`, dense, of bias and beta, are written where they are given.
    """
    if raw.numel() == 0:
        return out
    tensors = {
        "raw": raw, "bias": bias, "gamma": gamma, "beta": beta, "y": out,
        "bias_copy": copies[0], "beta_copy": copies[1],
    }  # fmt: skip
    _forward_plan(problem, host.layouts(raw, bias, gamma, beta)).start(tensors)
    return out


def start_backward(
    problem: ConvFilm,
    grad: Tensor,
    raw: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """(dz, db, dgamma, dbeta), None where `wanted` says so; `grad` of any strides, dz as `raw`.

    dz is what the library's convolution_backward takes, for the gradients of input and weight.
    """
    results = empty_results(problem, grad, wanted)
    if raw.numel() == 0:
        return tuple(None if result is None else result.zero_() for result in results)
    partials = empty_partials(problem, _blocks(problem)["chunks"], wanted)
    tensors = {
        "g": grad, "raw": raw, "bias": bias, "gamma": gamma, "beta": beta, "dz": results[0],
        **dict(zip(("partial_gamma", "sums_u", "sums_g"), partials, strict=True)),
    }  # fmt: skip
    _backward_plan(problem, host.layouts(raw, bias, gamma, beta, grad)).start(tensors)
    finish(problem, (None, *partials), bias, gamma, (None, *results[1:]), from_products=False)
    return results


@functools.lru_cache(maxsize=4096)
def _forward_plan(problem: ConvFilm, layouts: host.Layouts) -> Plan:
    numbers = _numbers(problem, layouts)
    return Plan(finish_forward_kernel, _programs(problem), numbers, problem.device, 4, 2)


@functools.lru_cache(maxsize=4096)
def _backward_plan(problem: ConvFilm, layouts: host.Layouts) -> Plan:
    numbers = {
        **_numbers(problem, layouts[:4]), "OW": host.sizes_of(problem).OW, **host.strides_of(g=layouts[4]),
        "WIDE": host.needs_64_bits(*layouts),
    }  # fmt: skip
    return Plan(start_backward_kernel, _programs(problem), numbers, problem.device, 4, 2)


def _programs(problem: ConvFilm) -> int:
    blocks = _blocks(problem)
    return problem.batch * blocks["chunks"] * host.cdiv(problem.out_channels, blocks["BLOCK_K"])


@functools.lru_cache(maxsize=4096)
def _blocks(problem: ConvFilm) -> dict[str, int]:
    """Tiles of about 2048 elements, long in the fastest dimension, and how the blocks of a sample are shared out."""
    sizes = host.sizes_of(problem)
    if problem.channels_last:
        block_k = min(128, max(16, host.next_power_of_2(sizes.K)))
        block_p = 2048 // block_k
    else:
        block_p = min(512, max(16, host.next_power_of_2(sizes.out_positions)))
        block_k = max(1, min(2048 // block_p, host.next_power_of_2(sizes.K)))
    blocks = host.cdiv(sizes.out_positions, block_p)
    rows = max(1, sizes.N * host.cdiv(sizes.K, block_k))
    chunks = min(blocks, host.cdiv(_CHUNKS, rows))
    chunk_blocks = host.cdiv(blocks, max(chunks, 1))
    chunks = host.cdiv(blocks, max(chunk_blocks, 1))
    return {"chunks": chunks, "chunk_blocks": chunk_blocks, "BLOCK_P": block_p, "BLOCK_K": block_k}


def _numbers(problem: ConvFilm, layouts: host.Layouts) -> dict[str, object]:
    """What both kernels take beside tensors, for the layouts of raw, bias, gamma and beta."""
    sizes, blocks = host.sizes_of(problem), _blocks(problem)
    return {
        "K": sizes.K, "P": sizes.out_positions, **blocks,
        **host.dense_strides("y", sizes.K, sizes.out_positions, problem.channels_last),
        **host.strides_of(bias=layouts[1], gamma=layouts[2], beta=layouts[3]),
        **host.options(problem), "POST": problem.film_position == "post", "LAST": problem.channels_last,
        "WIDE": host.needs_64_bits(*layouts),
    }  # fmt: skip
