"""A walk over a split: block after block of the positions of its units, and what of a block is loaded.

A block begins at position `first` of a sample. All that is carried from block to block is the same for every position:
where a position lies is worked out from `first` alone, for to carry that takes registers and more instructions.
"""

import triton
import triton.language as tl

from .tiles import index


@triton.jit
def next_block(unit, n, block, first, chunks, chunk_blocks, BLOCK_P: tl.constexpr):
    """The next block of positions of the unit, of its last block the next unit's first."""
    unit_done = block + 1 == chunk_blocks
    sample_done = first + BLOCK_P == chunks * chunk_blocks * BLOCK_P
    block = tl.where(unit_done, 0, block + 1)
    unit += unit_done.to(tl.int32)
    n += sample_done.to(tl.int32)
    first = tl.where(sample_done, 0, first + BLOCK_P)
    return unit, n, block, first


@triton.jit
def row_and_column(q, OW, row_factor, row_shift, WIDE: tl.constexpr):
    """(oh, ow) of the positions q of a sample: a division, by launch.reciprocal."""
    oh = (tl.umulhi((2 * q).to(tl.uint32), tl.full(q.shape, row_factor, tl.uint32)) >> row_shift).to(tl.int32)
    return index(oh, WIDE), index(q - oh * OW, WIDE)


@triton.jit
def load_block(
    g, n, first, k, k_valid, positions, OW, row_factor, row_shift, g_sn, g_sc, g_sh, g_sw,
    G_FLAT: tl.constexpr, EVEN_K: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """The incoming gradient of the positions from `first` on, 0 past the sample's last; G_FLAT says that each row of
    positions lies behind the one before."""
    ROW: tl.constexpr = 1 if LAST else 0
    lane = tl.arange(0, BLOCK_P)
    if G_FLAT:
        start = n * g_sn + index(first, WIDE) * g_sw
        along = index(lane, WIDE) * g_sw
    else:
        start = n * g_sn
        oh, ow = row_and_column(first + lane, OW, row_factor, row_shift, WIDE)
        along = oh * g_sh + ow * g_sw
    mask = tl.expand_dims(lane < positions - first, ROW)
    if not EVEN_K:
        mask = mask & tl.expand_dims(k_valid, 1 - ROW)
    return tl.load(g + start + (tl.expand_dims(along, ROW) + tl.expand_dims(k * g_sc, 1 - ROW)), mask=mask, other=0.0)


@triton.jit
def load_block_of_bits(
    bits, n, first, k0, K, valid, positions, bits_sn, bits_sk, bits_sp,
    ACTIVATION: tl.constexpr, EVEN_K: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The bits of these positions, a byte for eight channels; none is set past the sample's last, or if not `valid`."""
    if ACTIVATION == "none":
        packed = 0
    else:
        ROW: tl.constexpr = 1 if LAST else 0
        lane = tl.arange(0, BLOCK_P)
        byte = tl.arange(0, BLOCK_K // 8)
        mask = tl.expand_dims((lane < positions - first) & valid, ROW)
        if not EVEN_K:
            mask = mask & tl.expand_dims(byte * 8 < K - k0, 1 - ROW)
        start = n * bits_sn + index(first, WIDE) * bits_sp + index(k0 // 8, WIDE) * bits_sk
        offset = tl.expand_dims(index(lane, WIDE) * bits_sp, ROW) + tl.expand_dims(index(byte, WIDE) * bits_sk, 1 - ROW)
        packed = tl.load(bits + start + offset, mask=mask, other=0)
    return packed
