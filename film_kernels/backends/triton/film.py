"""Activation and FiLM of a tile of z, and what their backward makes of it and the incoming gradient."""

import triton
import triton.language as tl

from .activate import activate, activation_gradient
from .tiles import load_per_channel


@triton.jit
def load_film(
    gamma, beta, n, n_valid, k, k_valid, gamma_sn, gamma_sk, beta_sn, beta_sk,
    gamma_offset: tl.constexpr, ACC: tl.constexpr, ONE_SAMPLE: tl.constexpr,
):  # fmt: skip
    """(gamma + gamma_offset, beta) of a (positions, channels) tile; a gamma that is None counts as 1, beta as 0."""
    scale = tl.full((1, 1), 1.0, ACC) + gamma_offset
    if gamma is not None:
        scale = load_per_channel(gamma, n, n_valid, k, k_valid, gamma_sn, gamma_sk, 1, ONE_SAMPLE) + gamma_offset
    shift = tl.zeros((1, 1), ACC)
    if beta is not None:
        shift = load_per_channel(beta, n, n_valid, k, k_valid, beta_sn, beta_sk, 1, ONE_SAMPLE)
    return scale, shift


@triton.jit
def pre_activation(z, scale, shift, POST: tl.constexpr):
    """v, of which the activation is taken."""
    return z if POST else scale * z + shift


@triton.jit
def film_forward(z, scale, shift, lower_slope: tl.constexpr, ACTIVATION: tl.constexpr, POST: tl.constexpr):
    """y = scale * act(z) + shift (POST), or act(scale * z + shift)."""
    y = activate(pre_activation(z, scale, shift, POST), lower_slope, ACTIVATION)
    return scale * y + shift if POST else y


@triton.jit
def film_backward(g, z, scale, shift, lower_slope: tl.constexpr, ACTIVATION: tl.constexpr, POST: tl.constexpr):
    """(u, d): u = g * act'(v), of which the gradient of z is scale * u, and d, which dgamma is the sum of."""
    u = activation_gradient(g, pre_activation(z, scale, shift, POST), lower_slope, ACTIVATION)
    d = g * activate(z, lower_slope, ACTIVATION) if POST else u * z
    return u, d
