"""The activations of film_kernels/activations.py and their derivatives, of values in the type of sums.

Only exp and erf are used of the functions that not every GPU has. `!(v <= 0)` keeps NaN on the upper branch.
"""

import triton
import triton.language as tl

from .tiles import lower_branch


@triton.jit
def activate(v, negative_slope: tl.constexpr, ACTIVATION: tl.constexpr):
    """act(v)."""
    if ACTIVATION == "none":
        result = v
    elif ACTIVATION == "relu" or ACTIVATION == "leaky_relu":
        result = tl.where(v <= 0.0, lower_branch(v, negative_slope, ACTIVATION), v)
    elif ACTIVATION == "silu":
        result = v / (1.0 + tl.exp(-v))
    elif ACTIVATION == "gelu":
        result = v * normal(v)
    elif ACTIVATION == "gelu_tanh":
        result = 0.5 * v * (1.0 + tanh(cubic(v)))
    elif ACTIVATION == "sigmoid":
        result = 1.0 / (1.0 + tl.exp(-v))
    elif ACTIVATION == "tanh":
        result = tanh(v)
    elif ACTIVATION == "mish":
        n = mish_ratio(v)
        result = tl.where(v > 20.0, v, v * (n / (n + 2.0)))
    else:
        tl.static_assert(ACTIVATION == "elu")
        t = tanh(0.5 * v)  # exp(v) - 1 = 2 t / (1 - t), which loses no digits of a small v
        result = tl.where(v >= 0.0, v, 2.0 * t / (1.0 - t))
    return result


@triton.jit
def activation_gradient(g, v, negative_slope: tl.constexpr, ACTIVATION: tl.constexpr):
    """g * act'(v)."""
    if ACTIVATION == "none":
        result = g
    elif ACTIVATION == "relu" or ACTIVATION == "leaky_relu":
        result = tl.where(v <= 0.0, lower_branch(g, negative_slope, ACTIVATION), g)
    elif ACTIVATION == "silu":
        s = 1.0 / (1.0 + tl.exp(-v))
        result = g * (s * (1.0 + v * (1.0 - s)))
    elif ACTIVATION == "gelu":
        result = g * (normal(v) + v * tl.exp(-0.5 * v * v) * 0.3989422804014327)  # 1 / sqrt(2 pi)
    elif ACTIVATION == "gelu_tanh":
        inner = cubic(v)
        inner_slope = 0.7978845608028654 * (1.0 + 0.134145 * v * v)
        result = g * (0.5 * (1.0 + tanh(inner)) + 0.5 * v * tanh_slope(inner) * inner_slope)
    elif ACTIVATION == "sigmoid":
        s = 1.0 / (1.0 + tl.exp(-v))
        result = g * (s * (1.0 - s))
    elif ACTIVATION == "tanh":
        result = g * tanh_slope(v)
    elif ACTIVATION == "mish":
        n = mish_ratio(v)
        slope = n / (n + 2.0) + v * (4.0 * (n + 1.0) / ((n + 2.0) * (n + 2.0))) / (1.0 + tl.exp(-v))
        result = tl.where(v > 20.0, g, g * slope)
    else:
        tl.static_assert(ACTIVATION == "elu")
        result = tl.where(v >= 0.0, g, g * tl.exp(v))
    return result


@triton.jit
def tanh(v):
    # by exp the digits of a small v are lost; there tanh(v) = v + v w p / q, a minimax with float64's digits
    e = tl.exp(-2.0 * tl.abs(v))
    w = tl.minimum(v * v, 0.390625, propagate_nan=tl.PropagateNan.ALL)
    p = (-0.964399179425052238628 * w - 99.2877231001918586564) * w - 1614.68768441708447952
    q = ((w + 112.811678491632931402) * w + 2235.48839060100448583) * w + 4844.06305325125486048
    large = (1.0 - e) / (1.0 + e)
    return tl.where(tl.abs(v) < 0.625, v + v * w * (p / q), tl.where(v < 0.0, -large, large))


@triton.jit
def tanh_slope(v):
    """1 - tanh(v)^2, without the cancellation."""
    # near 0 nothing cancels yet, and the quotient's roundings are larger than the difference's
    e = tl.exp(-2.0 * tl.abs(v))
    t = tanh(v)
    return tl.where(tl.abs(v) < 0.5, 1.0 - t * t, 4.0 * e / ((1.0 + e) * (1.0 + e)))


@triton.jit
def normal(v):
    """The normal distribution's Phi(v)."""
    return 0.5 * (1.0 + tl.erf(v * 0.7071067811865476))


@triton.jit
def cubic(v):
    return 0.7978845608028654 * (v + 0.044715 * v * v * v)  # sqrt(2 / pi)


@triton.jit
def mish_ratio(v):
    """n with tanh(log(1 + exp(v))) = n / (n + 2), for v <= 20."""
    e = tl.exp(tl.minimum(v, 20.0, propagate_nan=tl.PropagateNan.ALL))
    return e * (e + 2.0)
