"""What the kernels share: which rows a tile has, and how tiles are loaded, modulated and stored.

A tile has one axis of positions and one of channels (or of products, (kernel tap, input channel)). It is loaded in the
order of memory, positions fastest for NCHW and channels fastest for channels_last, and turned afterwards. `LAST` says
that channels are fastest, and `ROW` is then the axis by which a vector over positions is expanded to a tile.
"""

import triton
import triton.language as tl


@triton.jit
def sample_and_position(block, per_sample, BLOCK: tl.constexpr, ONE_SAMPLE: tl.constexpr):
    """(n, q): the sample and the position within it of each row of tile `block`.

    With ONE_SAMPLE tiles do not cross samples and n is a scalar; otherwise rows are numbered through the samples.
    """
    if ONE_SAMPLE:
        blocks = tl.cdiv(per_sample, BLOCK)
        n = block // blocks
        q = (block - n * blocks) * BLOCK + tl.arange(0, BLOCK)
    else:
        row = block * BLOCK + tl.arange(0, BLOCK)
        n = row // per_sample
        q = row - n * per_sample
    return n, q


@triton.constexpr_function
def sum_type(element):
    """What sums of products of `element`s are taken in: float32, and float64 for float64."""
    return tl.float64 if element == tl.float64 else tl.float32


@triton.jit
def index(value, WIDE: tl.constexpr):
    """`value` in 64 bits where an offset can pass 2^31, as it is elsewhere."""
    if WIDE:
        value = value.to(tl.int64)
    return value


@triton.jit
def rounded_to_tf32(value):
    """float32 to the nearest tf32, of NVIDIA's GPUs: their matrix units would cut digits off, for twice the error."""
    return tl.inline_asm_elementwise(
        "cvt.rna.tf32.f32 $0, $1;", "=r, r", [value], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def multiply(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b in the type of acc. The interpreter cannot multiply bfloat16: there PRECISION is "widened"."""
    if PRECISION == "widened":
        acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    elif PRECISION == "tf32":
        acc = tl.dot(rounded_to_tf32(a), rounded_to_tf32(b), acc, input_precision=PRECISION, out_dtype=acc.dtype)
    else:
        acc = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)
    return acc


@triton.jit
def load_patch(
    x, h0, w0, valid, tap_h, tap_w, c, c_valid, H, W, x_sc, x_sh, x_sw,
    FLAT: tl.constexpr, ONES: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """patch(x)[p, r] of a sample as a (positions, products) tile, 0 outside the input.

    (h0, w0) is of a position, (tap_h, tap_w) of a tap: that of the whole tile, or with FLAT one for each product. Their
    sum is where the input is read. With ONES the products that are not valid are of ones.
    """
    ROW: tl.constexpr = 1 if LAST else 0
    of_products = tl.expand_dims(tap_h * x_sh + tap_w * x_sw + c * x_sc, 1 - ROW)
    offset = tl.expand_dims(h0 * x_sh + w0 * x_sw, ROW) + of_products
    if FLAT:
        h = tl.expand_dims(h0, ROW) + tl.expand_dims(tap_h, 1 - ROW)
        w = tl.expand_dims(w0, ROW) + tl.expand_dims(tap_w, 1 - ROW)
        inside = is_below(h, H) & is_below(w, W) & tl.expand_dims(valid, ROW)
    else:
        inside = tl.expand_dims(valid & is_below(h0 + tap_h, H) & is_below(w0 + tap_w, W), ROW)
    inside = inside & tl.expand_dims(c_valid, 1 - ROW)
    if ONES:
        outside = tl.expand_dims(tl.where(c_valid, 0.0, 1.0).to(x.dtype.element_ty), 1 - ROW)
        tile = tl.load(x + offset, mask=inside, other=tl.broadcast_to(outside, offset.shape))
    else:
        tile = tl.load(x + offset, mask=inside, other=0.0)
    if not LAST:
        tile = tl.trans(tile)
    return tile


@triton.jit
def is_below(i, size):
    """0 <= i < size, at once."""
    unsigned: tl.constexpr = tl.uint64 if i.dtype == tl.int64 else tl.uint32
    return i.to(unsigned) < tl.full((), size, unsigned)


@triton.jit
def lower_branch(v, lower_slope: tl.constexpr, ACTIVATION: tl.constexpr):
    """v times the slope of the lower branch; relu's is 0 for an infinite v too."""
    return tl.zeros_like(v) if ACTIVATION == "relu" else v * lower_slope


@triton.jit
def spread_bits(packed, shape: tl.constexpr, LAST: tl.constexpr):
    """A tile of bytes as one of `shape`, eight times as long in channels: whether the bit of each channel is set."""
    bit = tl.full((8,), 1, tl.uint8) << tl.arange(0, 8).to(tl.uint8)
    lanes = tl.expand_dims(packed, 2 if LAST else 1) & (bit[None, None, :] if LAST else bit[None, :, None])
    return tl.reshape(lanes != 0, shape)


@triton.jit
def where_set(tile, packed, PAIRED: tl.constexpr, LAST: tl.constexpr):
    """`tile`, in the order of memory, and 0 where the bit of a channel is not set; `packed` has a byte for eight.

    PAIRED says that two elements of 16 bits, side by side in a register, are masked at once, by NVIDIA's instruction
    that makes a byte of another's sign.
    """
    if PAIRED:
        shift = 7 - tl.arange(0, 8)
        lanes = tl.expand_dims(packed.to(tl.int32), 2 if LAST else 1)
        signs = tl.reshape(lanes << (shift[None, None, :] if LAST else shift[None, :, None]), tile.shape)
        result = tl.inline_asm_elementwise(
            "{ .reg .b32 mask; prmt.b32 mask, $2, $3, 0xcc88; and.b32 $0, $1, mask; }", "=r, r, r, r", [tile, signs],
            dtype=tile.dtype, is_pure=True, pack=2,
        )  # fmt: skip
    else:
        result = tl.where(spread_bits(packed, tile.shape, LAST), tile, 0.0)
    return result


@triton.jit
def scaled(tile, scale, IN_PAIRS: tl.constexpr):
    """tile * scale, rounded to the type of `tile`; IN_PAIRS says that scale is of 16 bits too, on NVIDIA's GPUs: two
    products at once, of which each is exact before it is rounded, as it is by way of float32."""
    if IN_PAIRS:
        scale = scale.to(tile.dtype)
        if tile.dtype == tl.bfloat16:
            product: tl.constexpr = "{ .reg .b32 zero; mov.b32 zero, 0x80008000; fma.rn.bf16x2 $0, $1, $2, zero; }"
        else:
            product: tl.constexpr = "mul.rn.f16x2 $0, $1, $2;"
        result = tl.inline_asm_elementwise(product, "=r, r, r", [tile, scale], dtype=tile.dtype, is_pure=True, pack=2)
    else:
        result = (tile.to(scale.dtype) * scale).to(tile.dtype)
    return result


@triton.jit
def through_activation(
    g, packed, lower_slope: tl.constexpr, ACTIVATION: tl.constexpr, PAIRED: tl.constexpr, LAST: tl.constexpr
):  # fmt: skip
    """u = g * slope(bits) of a tile in the order of memory; in g's type where that is exact, or as sums are taken."""
    if ACTIVATION == "none":
        u = g
    elif ACTIVATION == "relu":
        u = where_set(g, packed, PAIRED, LAST)
    else:
        g = g.to(sum_type(g.dtype))
        u = tl.where(spread_bits(packed, g.shape, LAST), g, g * lower_slope)
    return u


@triton.jit
def pack_bits(upper, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr):
    """A (positions, channels) tile of booleans as (positions, channels / 8) bytes, the first channel lowest."""
    lanes = tl.reshape(upper.to(tl.int32), (BLOCK_P, BLOCK_K // 8, 8))
    return tl.sum(lanes << tl.arange(0, 8)[None, None, :], axis=2).to(tl.uint8)


@triton.jit
def load_per_channel(
    factor, n, n_valid, k, k_valid, stride_n, stride_k, ROW: tl.constexpr, ONE_SAMPLE: tl.constexpr
):  # fmt: skip
    """gamma or beta (N, K) of a tile as sums are taken: one row of it with ONE_SAMPLE, a value an element otherwise."""
    if ONE_SAMPLE:
        values = tl.expand_dims(tl.load(factor + n * stride_n + k * stride_k, mask=k_valid, other=0.0), 1 - ROW)
    else:
        offset = tl.expand_dims(n * stride_n, ROW) + tl.expand_dims(k * stride_k, 1 - ROW)
        mask = tl.expand_dims(n_valid, ROW) & tl.expand_dims(k_valid, 1 - ROW)
        values = tl.load(factor + offset, mask=mask, other=0.0)
    return values.to(sum_type(factor.dtype.element_ty))


@triton.jit
def store_tile(out, p_offset, p_valid, k_offset, k_valid, tile, LAST: tl.constexpr):
    """Store a (positions, channels) tile in the order of memory."""
    ROW: tl.constexpr = 1 if LAST else 0
    if not LAST:
        tile = tl.trans(tile)
    offset = tl.expand_dims(p_offset, ROW) + tl.expand_dims(k_offset, 1 - ROW)
    mask = tl.expand_dims(p_valid, ROW) & tl.expand_dims(k_valid, 1 - ROW)
    tl.store(out + offset, tile.to(out.dtype.element_ty), mask=mask)
