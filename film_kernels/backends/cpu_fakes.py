"""What the CPU library's operators return, for whoever traces them: shapes and strides, and of the library's own checks
those of shapes and dtypes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..activations import ACTIVATIONS
from ..layouts import gradient_strides, strides_of
from ..problems.norm_film import NO_NORM, NORMS, shape_of_statistics, sums_of
from .compiled import Geometry, NormGeometry


def _check(name: str, tensor: Tensor | None, like: Tensor | None, shape: Sequence[int] | None = None) -> None:
    if tensor is None:
        raise RuntimeError(f"film_kernels: {name} must be a tensor, got None")
    if like is not None and tensor.dtype != like.dtype:
        raise RuntimeError(f"film_kernels: {name} must have the dtype of the others, {like.dtype}")
    if shape is not None and tuple(tensor.shape) != tuple(shape):
        raise RuntimeError(f"film_kernels: {name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")


def _out_shape(input_shape: Sequence[int], weight: Tensor, geometry: Geometry) -> tuple[int, ...]:
    if len(input_shape) not in (3, 4) or weight.dim() != len(input_shape):
        raise RuntimeError("film_kernels: input and weight must have 3 or 4 dimensions")
    if geometry.groups < 1 or input_shape[1] != weight.shape[1] * geometry.groups:
        raise RuntimeError("film_kernels: input must have as many channels as weight has in its groups")
    axes = (geometry.height, geometry.width)[4 - len(input_shape) :]
    return (input_shape[0], weight.shape[0], *(axis.out for axis in axes))


def _check_factors(
    weight: Tensor, batch: int, bias: Tensor | None, gamma: Tensor | None, beta: Tensor | None = None
) -> None:
    if bias is not None:
        _check("bias", bias, weight, weight.shape[:1])
    for name, factor in (("gamma", gamma), ("beta", beta)):
        if factor is not None:
            _check_factor(name, factor, weight, batch, weight.shape[0])


def _check_factor(name: str, factor: Tensor, like: Tensor, batch: int, channels: int) -> None:
    """A gamma or beta (N, K). It may have ones beside its channels and, if it has, one row for all samples."""
    has_ones = factor.dim() > 2 and factor.shape[0] in (1, batch) and _has_ones_beside(factor.shape, channels)
    _check(name, factor, like, None if has_ones else (batch, channels))


def _has_ones_beside(size: Sequence[int], channels: int) -> bool:
    """Whether there are so many channels in the second or the last dimension, and ones in the others but the first."""
    return any(
        size[at] == channels and all(other == 1 for d, other in enumerate(size) if d not in (0, at))
        for at in (1, len(size) - 1)
    )


def _bits_shape(out_shape: Sequence[int]) -> tuple[int, int]:
    return math.prod((out_shape[0], *out_shape[2:])), (out_shape[1] + 7) // 8


def _check_backward(grad: Tensor, bits: Tensor, weight: Tensor, shape: Sequence[int], geometry: Geometry) -> None:
    _check("grad", grad, weight, shape)
    if geometry.activation:
        _check("bits", bits, None, _bits_shape(shape))


def _empty(like: Tensor, shape: Sequence[int], channels_last: bool) -> Tensor:
    return like.new_empty_strided(shape, strides_of(shape, channels_last))


def _forward(input, weight, bias, gamma, beta, geometry, numbers, keep, channels_last=False, packed=None):
    geometry = Geometry.read(geometry)
    _check("input", input, None)
    _check("weight", weight, input)
    shape = _out_shape(input.shape, weight, geometry)
    _check_factors(weight, shape[0], bias, gamma, beta)
    y = _empty(input, shape, channels_last)
    if keep and not list(ACTIVATIONS.values())[geometry.activation].one_bit:
        return y, torch.empty_like(y)
    rows, row = _bits_shape(shape)
    return y, input.new_empty((rows if keep and geometry.activation else 0, row), dtype=torch.uint8)


def _forward_and_copy(input, weight, bias, gamma, beta, geometry, numbers, keep, channels_last, copy_bias, copy_beta):
    y, kept = _forward(input, weight, bias, gamma, beta, geometry, numbers, keep, channels_last)
    return y, kept, *_copies(input, (bias, copy_bias), (beta, copy_beta))


def _pack(weight, input_size, geometry, numbers):
    """How long it is depends on the weight's values."""
    _check("weight", weight, None)
    _out_shape(input_size, weight, Geometry.read(geometry))
    return weight.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=sums_of(weight.dtype))


def _grad_input(grad, bits, weight, gamma, input_size, channels_last, geometry, numbers):
    geometry = Geometry.read(geometry)
    _check("weight", weight, None)
    _check_backward(grad, bits, weight, _out_shape(input_size, weight, geometry), geometry)
    _check_factors(weight, input_size[0], None, gamma)
    return _empty(grad, input_size, channels_last)


def _grad_weight(
    grad, bits, input, weight, bias, gamma, weight_wanted, bias_wanted, gamma_wanted, beta_wanted, geometry, numbers,
    gamma_size=(), beta_size=(),
):  # fmt: skip
    geometry = Geometry.read(geometry)
    _check("input", input, None)
    _check("weight", weight, input)
    _check_backward(grad, bits, weight, _out_shape(input.shape, weight, geometry), geometry)
    _check_factors(weight, input.shape[0], bias, gamma)
    return (
        weight.new_empty_strided(weight.shape, gradient_strides(weight)) if weight_wanted else weight.new_empty(0),
        weight.new_empty(weight.shape[0] if bias_wanted else 0),
        _factor_gradient("gamma", gamma_wanted, gamma_size, weight, input.shape[0], weight.shape[0]),
        _factor_gradient("beta", beta_wanted, beta_size, weight, input.shape[0], weight.shape[0]),
    )


def _backward(
    grad, bits, input, weight, bias, gamma, input_wanted, weight_wanted, bias_wanted, gamma_wanted, beta_wanted,
    geometry, numbers, channels_last=False, gamma_size=(), beta_size=(),
):  # fmt: skip
    dx = input.new_empty(0)
    if input_wanted:
        dx = _grad_input(grad, bits, weight, gamma, input.shape, channels_last, geometry, numbers)
    wanted = (weight_wanted, bias_wanted, gamma_wanted, beta_wanted)
    return dx, *_grad_weight(grad, bits, input, weight, bias, gamma, *wanted, geometry, numbers, gamma_size, beta_size)


def _factor_gradient(name: str, wanted: bool, size: Sequence[int], like: Tensor, batch: int, channels: int) -> Tensor:
    if not wanted:
        return like.new_empty(0, channels)
    if not size:
        return like.new_empty(batch, channels)
    if len(size) < 2 or size[0] != batch or not _has_ones_beside(size, channels):
        raise RuntimeError(f"film_kernels: {name}_size must be ({batch}, {channels}) with ones beside the channels")
    return like.new_empty(tuple(size))


def _copies(input: Tensor, *given: tuple[Tensor | None, bool]) -> list[Tensor]:
    none = input.new_empty(0)
    return [
        torch.empty_like(tensor, memory_format=torch.contiguous_format) if asked and tensor is not None else none
        for tensor, asked in given
    ]


def _norm_shape(input: Tensor, geometry: Sequence[int]) -> NormGeometry:
    if len(geometry) != 5:
        raise RuntimeError(f"film_kernels: geometry must hold 5 integers, got {len(geometry)}")
    read = NormGeometry(*geometry)
    if not 2 <= input.dim() <= 5 or read.channel_dim not in (1, -1):
        raise RuntimeError("film_kernels: input must have 2 to 5 dimensions, and channel_dim be 1 or -1")
    return read


def _check_norm_factors(input: Tensor, channels: int, weight, bias, gamma, beta) -> None:
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None:
            _check(name, parameter, None, (channels,))
    for name, factor in (("gamma", gamma), ("beta", beta)):
        if factor is not None:
            _check_factor(name, factor, input, input.shape[0], channels)


def _statistics(input: Tensor, geometry: NormGeometry) -> Tensor:
    norm, (batch, *sizes) = (*NORMS, NO_NORM)[geometry.norm], input.shape
    channels = sizes.pop(geometry.channel_dim if geometry.channel_dim < 0 else 0)
    shape = shape_of_statistics(norm, geometry.groups, batch, channels, math.prod(sizes))
    return input.new_empty(shape, dtype=sums_of(input.dtype))


def _norm_forward(input, weight, bias, gamma, beta, geometry, numbers, channels_last=False):
    _check("input", input, None)
    geometry = _norm_shape(input, geometry)
    _check_norm_factors(input, input.shape[geometry.channel_dim], weight, bias, gamma, beta)
    return _empty(input, input.shape, channels_last), _statistics(input, geometry)


def _norm_forward_and_copy(input, weight, bias, gamma, beta, geometry, numbers, channels_last, copy_bias, copy_beta):
    y, statistics = _norm_forward(input, weight, bias, gamma, beta, geometry, numbers, channels_last)
    return y, statistics, *_copies(input, (bias, copy_bias), (beta, copy_beta))


def _norm_backward(
    grad, statistics, input, weight, bias, gamma, beta, input_wanted, weight_wanted, bias_wanted, gamma_wanted,
    beta_wanted, geometry, numbers, channels_last=False, gamma_size=(), beta_size=(),
):  # fmt: skip
    _check("input", input, None)
    geometry = _norm_shape(input, geometry)
    channels = input.shape[geometry.channel_dim]
    _check("grad", grad, input, input.shape)
    _check_norm_factors(input, channels, weight, bias, gamma, beta)
    parameter = next((p for p in (weight, bias) if p is not None), input)
    return (
        _empty(input, input.shape, channels_last) if input_wanted else input.new_empty(0),
        parameter.new_empty(channels if weight_wanted else 0),
        parameter.new_empty(channels if bias_wanted else 0),
        _factor_gradient("gamma", gamma_wanted, gamma_size, input, input.shape[0], channels),
        _factor_gradient("beta", beta_wanted, beta_size, input, input.shape[0], channels),
    )


def register() -> None:
    """To be called once, when the library has been loaded."""
    torch.library.register_fake("film_kernels_cpu::forward", _forward)
    torch.library.register_fake("film_kernels_cpu::pack", _pack)
    torch.library.register_fake("film_kernels_cpu::grad_input", _grad_input)
    torch.library.register_fake("film_kernels_cpu::grad_weight", _grad_weight)
    torch.library.register_fake("film_kernels_cpu::backward", _backward)
    torch.library.register_fake("film_kernels_cpu::forward_and_copy", _forward_and_copy)
    torch.library.register_fake("film_kernels_cpu::norm_forward", _norm_forward)
    torch.library.register_fake("film_kernels_cpu::norm_forward_and_copy", _norm_forward_and_copy)
    torch.library.register_fake("film_kernels_cpu::norm_backward", _norm_backward)
