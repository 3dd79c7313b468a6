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
    x, sample_offset, h0, w0, valid, kh, kw, c, c_valid, H, W, x_sc, x_sh, x_sw,
    DH: tl.constexpr, DW: tl.constexpr, FLAT: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """patch(x)[p, r] as a (positions, products) tile, 0 outside the input.

    (h0, w0) is where the patch of a position begins. The tap (kh, kw) is one of the whole tile, or with FLAT one for
    each product.
    """
    ROW: tl.constexpr = 1 if LAST else 0
    if FLAT:
        h = tl.expand_dims(h0, ROW) + tl.expand_dims(kh * DH, 1 - ROW)
        w = tl.expand_dims(w0, ROW) + tl.expand_dims(kw * DW, 1 - ROW)
        offset = tl.expand_dims(sample_offset, ROW) + tl.expand_dims(c * x_sc, 1 - ROW) + h * x_sh + w * x_sw
        inside = (h >= 0) & (h < H) & (w >= 0) & (w < W) & tl.expand_dims(valid, ROW)
    else:
        h = h0 + kh * DH
        w = w0 + kw * DW
        offset = tl.expand_dims(sample_offset + h * x_sh + w * x_sw, ROW) + tl.expand_dims(c * x_sc, 1 - ROW)
        inside = tl.expand_dims(valid & (h >= 0) & (h < H) & (w >= 0) & (w < W), ROW)
    tile = tl.load(x + offset, mask=inside & tl.expand_dims(c_valid, 1 - ROW), other=0.0)
    if not LAST:
        tile = tl.trans(tile)
    return tile


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
def load_gradient(
    g, bits, g_offset, bits_offset, valid, k0, K, g_sk, bits_sk,
    lower_slope: tl.constexpr, ACTIVATION: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """(g, u) as sums are taken, in the order of memory: the incoming gradient, u = g * slope(bits); 0 where not valid.

    A byte of `bits` holds the bits of eight channels; it is loaded once and spread over them.
    """
    ROW: tl.constexpr = 1 if LAST else 0
    k = index(k0 + tl.arange(0, BLOCK_K), WIDE)
    offset = tl.expand_dims(g_offset, ROW) + tl.expand_dims(k * g_sk, 1 - ROW)
    mask = tl.expand_dims(valid, ROW) & tl.expand_dims(k < K, 1 - ROW)
    g_tile = tl.load(g + offset, mask=mask, other=0.0).to(sum_type(g.dtype.element_ty))
    if ACTIVATION == "none":
        u_tile = g_tile
    else:
        byte = index(k0 // 8 + tl.arange(0, BLOCK_K // 8), WIDE)
        offset = tl.expand_dims(bits_offset, ROW) + tl.expand_dims(byte * bits_sk, 1 - ROW)
        mask = tl.expand_dims(valid, ROW) & tl.expand_dims(byte * 8 < K, 1 - ROW)
        packed = tl.load(bits + offset, mask=mask, other=0)
        upper = spread_bits(packed, g_tile.shape, LAST)
        u_tile = tl.where(upper, g_tile, lower_branch(g_tile, lower_slope, ACTIVATION))
    return g_tile, u_tile


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
