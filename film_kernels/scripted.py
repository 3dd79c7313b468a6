"""What stands for the kernels in TorchScript: activation and FiLM in PyTorch's own operators.

`torch.jit.script` compiles these functions from their source, so they keep to its part of Python: no table of
functions, no unpacking. What they compile to needs no film_kernels where it is loaded.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def activation_and_film(
    z: Tensor,
    unbatched: bool,
    gamma: Tensor | None,
    beta: Tensor | None,
    activation: str,
    negative_slope: float,
    film_position: str,
    gamma_offset: float,
) -> Tensor:
    """What `film_kernels.conv_film` makes of the convolution `z`, (N, K, *out) or, `unbatched`, (K, *out).

    gamma and beta are as `conv_film` takes them; the dtype is what PyTorch's type promotion makes of theirs and of z's.
    Raises ValueError for a shape that they cannot have.

    `z` itself is not asked for its dtype, nor for its dimensions to see whether it is unbatched: TorchScript takes a
    convolution's result to have the dtype of its input (under autocast it has not) and always a batch."""
    if unbatched:
        z = z.unsqueeze(0)
    if film_position == "pre":
        y = activated(film(z, gamma, beta, gamma_offset), activation, negative_slope)
    else:
        y = film(activated(z, activation, negative_slope), gamma, beta, gamma_offset)
    return y.squeeze(0) if unbatched else y


def film(input: Tensor, gamma: Tensor | None, beta: Tensor | None, gamma_offset: float = 0.0) -> Tensor:
    """`(gamma + gamma_offset) * input + beta`, input (N, K, *spatial); gamma and beta as `conv_film` takes them.

    Raises ValueError for a shape that they or `input` cannot have."""
    if input.dim() < 2:
        raise ValueError(f"input must have shape (N, K, *spatial), got {list(input.shape)}")
    if gamma is not None:
        factor = _over_positions("gamma", gamma, input)
        input = input * (factor if gamma_offset == 0.0 else factor + gamma_offset)
    elif gamma_offset != 0.0:
        input = input * (1.0 + gamma_offset)
    return input if beta is None else input + _over_positions("beta", beta, input)


def activated(v: Tensor, activation: str, negative_slope: float) -> Tensor:
    """`act(v)`, by the names of `film_kernels.activations.ACTIVATIONS`. Raises ValueError for another name."""
    if activation == "none":
        return v
    if activation == "relu":
        return F.relu(v)
    if activation == "leaky_relu":
        return F.leaky_relu(v, negative_slope)
    if activation == "silu":
        return F.silu(v)
    if activation == "gelu":
        return F.gelu(v)
    if activation == "gelu_tanh":
        return F.gelu(v, approximate="tanh")
    if activation == "sigmoid":
        return torch.sigmoid(v)
    if activation == "tanh":
        return torch.tanh(v)
    if activation == "mish":
        return F.mish(v)
    if activation == "elu":
        return F.elu(v)
    raise ValueError(f"activation {activation} has no formula here")


def over_channels(
    z: Tensor,
    channel_dim: int,
    gamma: Tensor | None,
    beta: Tensor | None,
    activation: str,
    negative_slope: float,
    film_position: str,
    gamma_offset: float,
) -> Tensor:
    """`activation_and_film` of `z` with its channels last, (N, *out, K), and so gamma and beta if `channel_dim` is -1;
    or else they and what is returned have them second."""
    gamma, beta = _channels_alone(gamma, channel_dim), _channels_alone(beta, channel_dim)
    z = z.movedim(-1, 1)
    y = activation_and_film(z, False, gamma, beta, activation, negative_slope, film_position, gamma_offset)
    return y.movedim(1, -1) if channel_dim == -1 else y


def _channels_alone(factor: Tensor | None, channel_dim: int) -> Tensor | None:
    """A gamma or beta with the channels last, (N, 1, ..., C), as (N, C)."""
    if factor is None or channel_dim != -1 or factor.dim() < 3:
        return factor
    return factor.flatten(1)


def running_statistics(
    training: bool,
    tracks: bool,
    momentum: float | None,
    batches: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
) -> tuple[Tensor | None, Tensor | None, bool, float]:
    """What `torch.nn.functional.batch_norm` is given by `nn.BatchNorm2d` and its like, (running_mean, running_var,
    training, momentum), from their attributes of these names. The batches of training are counted in `batches`."""
    factor = 0.0 if momentum is None else momentum
    if training and tracks and batches is not None:
        batches.add_(1)
        if momentum is None:  # the mean of all batches so far
            factor = 1.0 / float(batches)
    if training and not tracks:
        return None, None, True, factor
    return mean, variance, training or (mean is None and variance is None), factor


def _over_positions(name: str, factor: Tensor, input: Tensor) -> Tensor:
    """gamma or beta as (N or 1, K, 1, ...), which broadcasts over the positions of `input` (N, K, *spatial)."""
    batch, channels, rank = input.shape[0], input.shape[1], input.dim() - 2
    sizes = list(factor.shape)
    ones = [1] * rank
    of_samples = len(sizes) >= 2 and sizes[1] == channels and (sizes[0] == 1 or sizes[0] == batch)
    if of_samples and (sizes[2:] == ones or len(sizes) == 2):
        return factor.reshape([sizes[0], channels] + ones)  # noqa: RUF005
    if len(sizes) >= 1 and sizes[0] == channels and (sizes[1:] == ones or len(sizes) == 1):
        return factor.reshape([1, channels] + ones)  # noqa: RUF005
    raise ValueError(
        f"{name} must have shape (N, K) = ({batch}, {channels}), (1, K), (K,) or one of these with a 1 for each "
        f"spatial dimension, got {sizes}"
    )
