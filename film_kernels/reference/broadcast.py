"""FiLM alone, by broadcasting."""

from __future__ import annotations

from torch import Tensor


def film(
    input: Tensor, gamma: Tensor | None, beta: Tensor | None, gamma_offset: float = 0.0, channel_dim: int = 1
) -> Tensor:
    """`(gamma + gamma_offset) * input + beta`; gamma and beta are (N, K) or None, input is (N, K, *spatial), or
    (N, *spatial, K) where channel_dim is -1."""
    if gamma is not None:
        gamma = gamma + gamma_offset if gamma_offset else gamma
        input = over_positions(gamma, input.dim(), channel_dim) * input
    elif gamma_offset:
        input = input * (1.0 + gamma_offset)
    return input if beta is None else input + over_positions(beta, input.dim(), channel_dim)


def over_positions(factor: Tensor, rank: int, channel_dim: int = 1) -> Tensor:
    """(N, K) or (K,) as it broadcasts over a tensor of `rank` dimensions."""
    ones = (1,) * (rank - 2)
    sizes = (1, *factor.shape)[-2:]
    return factor.reshape(*sizes, *ones) if channel_dim == 1 else factor.reshape(sizes[0], *ones, sizes[1])
