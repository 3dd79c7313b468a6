"""What the kernels of norm_film share: tiles of positions and columns, their factors, what they become, and the merging
of partial statistics.

A tile has rows, positions of one sample, and columns, channels. They lie side by side, whatever the groups
(norm_slots.py); or they are of whole groups, each padded to MEMBERS channels, or, where a group has more, of one of its
slabs. What has groups of one channel has GROUPS columns.
"""

import triton
import triton.language as tl

from .activate import activate, activation_gradient
from .film import load_film
from .tiles import index


@triton.jit
def tile_of(program, blocks, chunks, WIDE: tl.constexpr):
    """(sample, block of columns, chunk of positions) of a program."""
    rest = program // chunks
    return index(rest // blocks, WIDE), rest % blocks, program - rest * chunks


@triton.jit
def columns_of(
    block, slab, groups, each, WHOLE: tl.constexpr, GROUPS: tl.constexpr, MEMBERS: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """(channels, valid) of a tile's columns; WHOLE says that groups are MEMBERS channels."""
    i = tl.arange(0, GROUPS * MEMBERS)
    if WHOLE:
        c = block * (GROUPS * MEMBERS) + i
        valid = c < groups * each
    elif GROUPS == 1:
        c = block * each + slab * MEMBERS + i
        valid = slab * MEMBERS + i < each
    else:
        group = block * GROUPS + i // MEMBERS
        c = group * each + i % MEMBERS
        valid = (group < groups) & (i % MEMBERS < each)
    return index(c, WIDE), valid


@triton.jit
def by_group(columns, GROUPS: tl.constexpr, MEMBERS: tl.constexpr):
    """The sums over the columns of each group."""
    return tl.sum(tl.reshape(columns, (GROUPS, MEMBERS)), axis=1)


@triton.jit
def by_column(groups, GROUPS: tl.constexpr, MEMBERS: tl.constexpr):
    """A value of each group as a row of a tile."""
    if MEMBERS == 1:
        row = groups
    elif GROUPS == 1:
        row = tl.broadcast_to(groups, (MEMBERS,))
    else:  # not by a reshape, with whose layout Triton 3.6 holds whole tiles in each thread's memory
        row = tl.gather(groups, tl.arange(0, GROUPS * MEMBERS) // MEMBERS, 0)
    return row[None, :]


@triton.jit
def reciprocal_deviation(second, eps: tl.constexpr, NORM: tl.constexpr):
    """rstd of a variance or a mean square, or of a length ("l2")."""
    if NORM == "l2":
        result = 1.0 / tl.maximum(second, eps, propagate_nan=tl.PropagateNan.ALL)
    else:
        result = 1.0 / tl.sqrt(second + eps)
    return result


@triton.jit
def load_statistics(
    statistics, at, valid, count, eps: tl.constexpr, NORM: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """(mean, rstd) of the groups of numbers `at`, of `count` groups in all; 0 and 1 where nothing is normalised."""
    mean = tl.zeros(at.shape, ACC)
    rstd = mean + 1.0
    if NORM == "rms" or NORM == "l2":
        rstd = reciprocal_deviation(tl.load(statistics + at, mask=valid, other=1.0), eps, NORM)
    elif NORM != "none":
        mean = tl.load(statistics + at, mask=valid, other=0.0)
        rstd = reciprocal_deviation(tl.load(statistics + count + at, mask=valid, other=1.0), eps, NORM)
    return mean, rstd


@triton.jit
def load_factors(
    weight, bias, gamma, beta, n, n_valid, c, valid, w_sk, b_sk, gamma_sn, gamma_sk, beta_sn, beta_sk,
    gamma_offset: tl.constexpr, ACC: tl.constexpr, ONE_SAMPLE: tl.constexpr,
):  # fmt: skip
    """(weight, bias, gamma + gamma_offset, beta) of a tile's columns."""
    w = tl.full((1, 1), 1.0, ACC)
    if weight is not None:
        w = tl.expand_dims(tl.load(weight + c * w_sk, mask=valid, other=0.0), 0).to(ACC)
    b = tl.zeros((1, 1), ACC)
    if bias is not None:
        b = tl.expand_dims(tl.load(bias + c * b_sk, mask=valid, other=0.0), 0).to(ACC)
    scale, shift = load_film(
        gamma, beta, n, n_valid, c, valid, gamma_sn, gamma_sk, beta_sn, beta_sk, gamma_offset, ACC, ONE_SAMPLE
    )
    return w, b, scale, shift


@triton.jit
def modulate(xhat, w, b, scale, shift, lower_slope: tl.constexpr, ACTIVATION: tl.constexpr, POST: tl.constexpr):
    """y of a tile."""
    z = w * xhat + b
    if POST:
        result = scale * activate(z, lower_slope, ACTIVATION) + shift
    else:
        result = activate(scale * z + shift, lower_slope, ACTIVATION)
    return result


@triton.jit
def differentiate(
    g, xhat, w, b, scale, shift, lower_slope: tl.constexpr, ACTIVATION: tl.constexpr, POST: tl.constexpr
):  # fmt: skip
    """d = g * act'(v), of which the gradient of xhat is scale * w * d."""
    z = w * xhat + b
    v = z if POST else scale * z + shift
    return activation_gradient(g, v, lower_slope, ACTIVATION)


@triton.jit
def around_the_mean(squares, rest, off):
    """The sum of squares around the mean, of that around a number which the mean is `off` from, rest / count."""
    squares -= tl.where(squares == float("inf"), 0.0, rest * off)  # which can be infinite too
    return tl.where(squares < 0.0, 0.0, squares)  # NaN stays
