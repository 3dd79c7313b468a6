"""The main loop of forward and of what computes z once more: a tile of conv(x, W) + b.

What a step needs is carried from step to step, or made once for a tile: where the patch of a position begins, and one
bit a tap of whether it lies inside the input there. A step adds only what is the same for all positions.
"""

import triton
import triton.language as tl

from ...problems.conv_film import ConvFilm
from . import launch as host
from .tiles import index, multiply, sample_and_position, sum_type
from .tuning import Entry


@triton.jit
def output_tile(
    K, positions, OW, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, ONE_SAMPLE: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """(block of positions, block of channels, n, q, oh, ow) of this program's tile: rows are output positions, columns
    output channels; programs that share positions are neighbours."""
    pid = tl.program_id(0)
    k_blocks = tl.cdiv(K, BLOCK_K)
    p_block = pid // k_blocks
    n, q = sample_and_position(index(p_block, WIDE), positions, BLOCK_P, ONE_SAMPLE)
    oh = q // OW
    return p_block, pid - p_block * k_blocks, n, q, oh, q - oh * OW


@triton.constexpr_function
def has_bits(kh, kw):
    """Whether all taps of the kernel, and one past them, have a bit in one integer."""
    return kh * kw < 32


@triton.jit
def inside_taps(
    h0, w0, valid, H, W, KH: tl.constexpr, KW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr
):  # fmt: skip
    """For each position, in bit kh * KW + kw, whether that tap lies inside the input; 0 for those not valid."""
    row = tl.zeros(valid.shape, tl.uint32)
    for kw in tl.static_range(0, KW):
        w = w0 + kw * DW
        row |= ((w >= 0) & (w < W) & valid).to(tl.uint32) << kw
    taps = tl.zeros(valid.shape, tl.uint32)
    for kh in tl.static_range(0, KH):
        h = h0 + kh * DH
        taps |= tl.where((h >= 0) & (h < H), row << (kh * KW), 0)
    return taps


@triton.jit
def is_inside(
    taps, h0, w0, valid, tap, kh, kw, H, W, KH: tl.constexpr, KW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr
):  # fmt: skip
    """Whether the tap is inside the input, of operands that broadcast; by its bit, where it has one."""
    if has_bits(KH, KW):
        inside = (taps & (tl.full(tap.shape, 1, tl.uint32) << tap.to(tl.uint32))) != 0
    else:
        h = h0 + kh * DH
        w = w0 + kw * DW
        inside = (h >= 0) & (h < H) & (w >= 0) & (w < W) & valid
    return inside


@triton.jit
def tap_inside(
    taps, h0, w0, valid, kh, kw, H, W, KH: tl.constexpr, KW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr
):  # fmt: skip
    """`is_inside` of one tap for the whole tile."""
    tap = tl.full((1, 1), 0, tl.int32) + (kh * KW + kw)
    return is_inside(taps, h0, w0, valid, tap, kh, kw, H, W, KH, KW, DH, DW)


@triton.jit
def convolve(
    x, w, bias, n, h0, w0, p_valid, k, k_valid,
    C, H, W, x_sn, x_sc, x_sh, x_sw, w_sn, w_sc, w_sh, w_sw, bias_sk,
    KH: tl.constexpr, KW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, PRECISION: tl.constexpr,
    FLAT_C: tl.constexpr, EVEN_C: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """z[p, k] = sum_r patch(x)[p, r] W[k, r] + b[k] of the positions whose patches begin at (h0, w0) of sample n.

    Products r = (kh, kw, c) come by taps; with FLAT_C, which is then C, all numbered through.
    """
    ROW: tl.constexpr = 1 if LAST else 0  # the axis by which a vector over positions is expanded to a tile
    acc = tl.zeros((BLOCK_P, BLOCK_K), sum_type(x.dtype.element_ty))
    taps = tl.zeros(p_valid.shape, tl.uint32)
    if has_bits(KH, KW):
        taps = inside_taps(h0, w0, p_valid, H, W, KH, KW, DH, DW)
    taps = tl.expand_dims(taps, ROW)
    # Of a patch's beginning in memory. Where padding is before it, it is before the input too, and never read.
    start = tl.expand_dims(n * x_sn + h0 * x_sh + w0 * x_sw, ROW)
    h_start = tl.expand_dims(h0, ROW)
    w_start = tl.expand_dims(w0, ROW)
    valid = tl.expand_dims(p_valid, ROW)
    w_start_of_k = (k * w_sn)[:, None]
    lane = tl.arange(0, BLOCK_R)
    if FLAT_C:
        PRODUCTS: tl.constexpr = KH * KW * FLAT_C
        for step in range(0, (PRODUCTS + BLOCK_R - 1) // BLOCK_R):
            r = step * BLOCK_R + lane
            tap = r // FLAT_C
            kh = index(tap // KW, WIDE)
            kw = index(tap % KW, WIDE)
            c = index(r % FLAT_C, WIDE)
            r_valid = r < PRODUCTS
            offset = start + tl.expand_dims(kh * DH * x_sh + kw * DW * x_sw + c * x_sc, 1 - ROW)
            inside = is_inside(
                taps, h_start, w_start, valid, tl.expand_dims(tap, 1 - ROW), tl.expand_dims(kh, 1 - ROW),
                tl.expand_dims(kw, 1 - ROW), H, W, KH, KW, DH, DW,
            )  # fmt: skip
            patch = tl.load(x + offset, mask=inside & tl.expand_dims(r_valid, 1 - ROW), other=0.0)
            if not LAST:
                patch = tl.trans(patch)
            w_offset = w_start_of_k + (kh * w_sh + kw * w_sw + c * w_sc)[None, :]
            w_tile = tl.load(w + w_offset, mask=k_valid[:, None] & r_valid[None, :], other=0.0)
            acc = multiply(patch, tl.trans(w_tile), acc, PRECISION)
    else:
        offset = start + tl.expand_dims(index(lane, WIDE) * x_sc, 1 - ROW)
        w_offset = w_start_of_k + (index(lane, WIDE) * w_sc)[None, :]
        kh = 0
        kw = 0
        c0 = 0
        for _ in range(0, KH * KW * tl.cdiv(C, BLOCK_R)):
            row = index(kh, WIDE)
            column = index(kw, WIDE)
            first = index(c0, WIDE)
            mask = tap_inside(taps, h_start, w_start, valid, kh, kw, H, W, KH, KW, DH, DW)
            w_mask = k_valid[:, None]
            if not EVEN_C:
                c_valid = lane < C - c0
                mask = mask & tl.expand_dims(c_valid, 1 - ROW)
                w_mask = w_mask & c_valid[None, :]
            patch = tl.load(
                x + (row * (DH * x_sh) + column * (DW * x_sw) + first * x_sc) + offset, mask=mask, other=0.0
            )
            if not LAST:
                patch = tl.trans(patch)
            w_tile = tl.load(w + (row * w_sh + column * w_sw + first * w_sc) + w_offset, mask=w_mask, other=0.0)
            acc = multiply(patch, tl.trans(w_tile), acc, PRECISION)
            # the next channels, of the last ones of a tap the next tap's first
            c0 += BLOCK_R
            tap_done = c0 >= C
            c0 = tl.where(tap_done, 0, c0)
            kw += tap_done.to(tl.int32)
            row_done = kw == KW
            kw = tl.where(row_done, 0, kw)
            kh += row_done.to(tl.int32)
    if bias is not None:
        acc += tl.load(bias + k * bias_sk, mask=k_valid, other=0.0).to(acc.dtype)[None, :]
    return acc


def convolution(problem: ConvFilm, entry: Entry, how: str, input: host.Layout) -> dict[str, object]:
    """The arguments that say what is convolved, activated and modulated, and how it is cut."""
    sizes = host.sizes_of(problem)
    return {
        **{name: getattr(sizes, name) for name in ("N", "C", "H", "W", "K", "OH", "OW", "PH", "PW")},
        **host.options(problem), **host.geometry(sizes), "POST": problem.film_position == "post", "PRECISION": how,
        "FLAT_C": sizes.C if entry.flat else 0, "EVEN_C": sizes.C % entry.products == 0,
        "X_LAST": input.channels_fastest,
        "BLOCK_P": entry.positions, "BLOCK_K": entry.channels, "BLOCK_R": entry.products,
    }  # fmt: skip
