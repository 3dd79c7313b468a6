"""The front door: checks the arguments, brings gamma and beta to (N, K), and calls the operator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import arguments, norm_arguments, ops, reference, repeated, running
from .activations import ACTIVATIONS
from .backends import pinned
from .problems.conv_film import ConvFilm
from .ways import film_is_apart


def conv_film(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    activation: str = "relu",
    negative_slope: float = 0.01,
    film_position: str = "post",
    gamma_offset: float | Tensor = 0.0,
    keep: str = "fast",
    backend: str | None = None,
) -> Tensor:
    """Convolution, activation and FiLM in one pass.

    With `z = conv(input, weight) + bias`::

        film_position="post":  y = (gamma + gamma_offset) * act(z) + beta
        film_position="pre":   y = act((gamma + gamma_offset) * z + beta)

    FiLM is feature-wise linear modulation (Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer",
    AAAI 2018); the convolution is `torch.nn.functional.conv1d`, `conv2d` or `conv3d`, by the rank of `weight`. It is
    differentiable in all five tensors; `keep` says what it may hold in memory for that.

    Args:
        input: (N, C, *in), or (C, *in) without a batch. Floating-point. Any strides; the output is channels_last where
            the input or the weight is, as conv2d's.
        weight: (K, C / groups, *kernel).
        bias: (K,) or None.
        gamma: (N, K), (1, K), (K,), (N, K, 1, 1) or (K, 1, 1); None stands for 1.
        beta: as gamma; None stands for 0.
        stride, dilation: an integer, or one for each spatial dimension; in positions.
        padding: the same, for zeros on both sides; or "same" or "valid".
        groups: as in `torch.nn.functional.conv2d`.
        activation: "relu", "leaky_relu" or "none"; or, smooth, "silu", "gelu", "gelu_tanh" (its tanh approximation),
            "sigmoid", "tanh", "mish" or "elu" (alpha = 1): `torch.nn.functional`'s functions of these names.
        negative_slope: of leaky_relu.
        film_position: "post" (after the activation) or "pre" (before it).
        gamma_offset: added to gamma; 1 for the `(1 + gamma) * x + beta` convention. A tensor of one element gets its
            gradient.
        keep: what forward may keep for backward, beside the arguments. "fast" keeps `conv(input, weight)`, an output in
            the dtype of the input, where that makes backward faster; "bits" one bit an output element; "least" nothing:
            the convolution is computed once more in backward. It is a choice on GPUs. On the CPU the fused kernels, the
            fastest there, keep the bits whatever it says. Of smooth activations, for which bits are not enough, they
            keep the output of the convolution with "bits" as with "fast", and nothing with "least". Where they do not
            serve (3d, narrow groups) it holds as on GPUs, and "bits" is as "least".
        backend: one of `available_backends()`, to insist on it.

    Returns:
        (N, K, *out), or (K, *out) for an input without a batch, in the dtype of `input` (under autocast, in its own).

    Raises:
        TypeError: an argument of a wrong type, tensors of different or integer dtypes, or sparse or nested ones.
        ValueError: a wrong shape, option or device, or a backend that cannot serve the call; the message names the
            argument.
    """
    tensors = (input, weight, bias, gamma, beta)
    options = (stride, padding, dilation, groups, activation, negative_slope, film_position, gamma_offset, keep)
    if backend is None and not torch.compiler.is_compiling():
        found = repeated.conv_film(tensors, options)
        if found is not None:
            return found
    problem, tensors, unbatched = arguments.prepare(tensors, options)
    pin = pinned(backend)
    _, weight, _, gamma, _ = tensors
    if film_is_apart(problem) and gamma.requires_grad and not weight.requires_grad and torch.is_grad_enabled():  # type: ignore[union-attr]
        # dgamma would be all that is wanted of the weight gradient's pass: to keep FiLM's own input is faster.
        y = _film_apart(problem, pin, tensors)
    else:
        y = ops.call(problem, pin, tensors)
    return y.squeeze(0) if unbatched else y


def _film_apart(problem: ConvFilm, pin: str | None, tensors: arguments.Tensors) -> Tensor:
    """The convolution (and an activation before FiLM) by a kernel, FiLM by autograd."""
    input, weight, bias, gamma, beta = tensors
    post = problem.film_position == "post"
    activation = problem.activation if post else "none"
    inner = problem._replace(has_gamma=False, has_beta=False, activation=activation, gamma_offset=0.0)
    z = ops.call(inner, pin, (input, weight, bias, None, None))
    y = reference.film(z, gamma, beta, problem.gamma_offset)
    return y if post else ACTIVATIONS[problem.activation].apply(y, problem.negative_slope)


def norm_film(
    input: Tensor,
    norm: str = "group",
    num_groups: int | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    eps: float = 1e-5,
    activation: str = "silu",
    negative_slope: float = 0.01,
    film_position: str = "pre",
    gamma_offset: float | Tensor = 0.0,
    channel_dim: int = 1,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    backend: str | None = None,
) -> Tensor:
    """Normalisation, FiLM and activation in one operator.

    With `xhat` the normalised input::

        film_position="pre":   y = act((gamma + gamma_offset) * (weight * xhat + bias) + beta)
        film_position="post":  y = (gamma + gamma_offset) * act(weight * xhat + bias) + beta

        norm="group"    xhat = (input - mean) / sqrt(var + eps) over the channels of a group and all positions of a
                        sample, as torch.nn.functional.group_norm; instance_norm is num_groups=C
        norm="batch"    the same over all samples and positions of a channel, as batch_norm
        norm="channel"  the same over the channels of a position: layer_norm over the channels
        norm="rms"      input / sqrt(mean(input^2) + eps) over the channels of a position: rms_norm
        norm="l2"       input / max(||input||, eps) over the channels of a position: normalize(dim=1)

    FiLM is feature-wise linear modulation (Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer",
    AAAI 2018), and group normalisation is by Wu and He (ECCV 2018). It is differentiable in all five tensors, and keeps
    two numbers a group for that, beside its arguments.

    Args:
        input: (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W); (N, *spatial, C) with `channel_dim=-1`.
            Floating-point. Any strides; the output is channels_last where the input is.
        norm: what is normalised, see above.
        num_groups: of norm="group", a divisor of C; None for the others.
        weight: (C,) or None, which stands for 1; of the input's dtype, or float32 beside an input of 16 bits.
        bias: the same; None stands for 0.
        gamma: (N, C), (1, C), (C,), (N, C, 1, 1) or (C, 1, 1), with the ones in front of C where `channel_dim` is -1;
            None stands for 1.
        beta: as gamma; None stands for 0.
        eps: at least 0.
        activation: "silu", "relu", "leaky_relu", "gelu", "gelu_tanh" (its tanh approximation), "sigmoid", "tanh",
            "mish", "elu" (alpha = 1) or "none": `torch.nn.functional`'s functions of these names.
        negative_slope: of leaky_relu.
        film_position: "pre" (before the activation) or "post" (after it).
        gamma_offset: added to gamma; 1 for the `(1 + gamma) * x + beta` convention. A tensor of one element gets its
            gradient.
        channel_dim: 1, or -1 for tensors whose channels come last, with norm "channel", "rms" or "l2".
        running_mean, running_var, training, momentum: of norm="batch", as `torch.nn.functional.batch_norm` takes them
            ((C,) or None): in training they are updated in place, and otherwise used.
        backend: one of `available_backends()`, to insist on it.

    Returns:
        The shape and dtype of `input` (under autocast, what plain PyTorch gives).

    Raises:
        TypeError: an argument of a wrong type, tensors of different or integer dtypes, or sparse or nested ones.
        ValueError: a wrong shape, option or device, or a backend that cannot serve the call; the message names the
            argument.
    """
    tensors = (input, weight, bias, gamma, beta)
    options = (norm, num_groups, eps, activation, negative_slope, film_position, gamma_offset, channel_dim)
    has_statistics = norm == "batch" or running_mean is not None or running_var is not None
    if not has_statistics and backend is None and not torch.compiler.is_compiling():
        found = repeated.norm_film(tensors, options)
        if found is not None:
            return found
    statistics = running.Statistics(running_mean, running_var, training, momentum) if has_statistics else None
    problem, tensors = norm_arguments.prepare(tensors, options, statistics)
    pin = pinned(backend)
    if statistics is None or problem.norm != "batch" or not statistics.are_kept:
        return ops.call(problem, pin, tensors)
    y, kept = ops.call_and_tell(problem, pin, tensors)
    with torch.no_grad():
        statistics.update(problem, running.statistics_of(problem, tensors[0]) if kept is None else kept)
    return y


def film(input: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
    """`gamma * input + beta` with gamma and beta per sample and channel: FiLM alone, by broadcasting (Perez et al.,
    AAAI 2018).

    Args:
        input: (N, K, *spatial) with any number of spatial dimensions.
        gamma: (N, K), (1, K), (K,), (N, K, 1, ...) or (K, 1, ...); None stands for 1.
        beta: as gamma; None stands for 0.

    Returns:
        The shape of `input`, with PyTorch's type promotion.

    Raises:
        TypeError: an argument that is not a tensor.
        ValueError: a gamma or beta of another shape.
    """
    if not isinstance(input, Tensor):
        raise TypeError(f"input must be a torch.Tensor, got {type(input).__name__}")
    if input.dim() < 2:
        raise ValueError(f"input must have shape (N, K, *spatial), got {tuple(input.shape)}")
    n_k = (input.shape[0], input.shape[1])
    return reference.film(
        input,
        arguments.film_factor("gamma", gamma, n_k, input.dim() - 2),
        arguments.film_factor("beta", beta, n_k, input.dim() - 2),
    )
