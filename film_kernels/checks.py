"""Checks of single arguments, the same for every operator. Each raises TypeError or ValueError and names the
argument."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

Kind = tuple[torch.Size, torch.dtype, torch.device, torch.layout]
INTEGERS = frozenset((int,))
_MOST = 2**31 - 1  # of a stride, padding, dilation or number of groups: products of these and a size fit 64 bits


def check_types(names: Sequence[str], tensors: Sequence[Any], required: int) -> None:
    """Raise for what is no dense tensor; of some others not even the shape can be asked. The first `required` may not
    be None."""
    for at, (name, tensor) in enumerate(zip(names, tensors, strict=True)):
        if tensor is None and at >= required:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.is_nested or tensor.layout is not torch.strided:
            raise TypeError(_not_dense(name, "nested tensor" if tensor.is_nested else tensor.layout))


def _not_dense(name: str, found: object) -> str:
    return f"{name} must be a dense (torch.strided) tensor, got {found}"


def check_kinds(
    names: Sequence[str], kinds: Sequence[Kind | None], dtypes: Mapping[str, torch.dtype] = MappingProxyType({})
) -> None:
    """Check that all are dense floating tensors of one device, and of one dtype but for those of `dtypes`. The first is
    the input, and there."""
    _, dtype, device, layout = kinds[0]  # type: ignore[misc]
    if layout is not torch.strided:
        raise TypeError(_not_dense(names[0], layout))
    if not (dtype.is_floating_point or dtype.is_complex):
        raise TypeError(f"input must be a floating-point tensor, got {dtype}")
    for name, kind in zip(names[1:], kinds[1:], strict=True):
        if kind is None:
            continue
        if kind[1] != dtypes.get(name, dtype):
            like = f"be of {dtypes[name]}" if name in dtypes else f"have the dtype of input, {dtype}"
            raise TypeError(f"{name} must {like}, got {kind[1]}")
        if kind[2] != device:
            raise ValueError(f"{name} must be on the device of input, {device}, got {kind[2]}")
        if kind[3] is not torch.strided:
            raise TypeError(_not_dense(name, kind[3]))


def per_dimension(name: str, value: Any, rank: int, least: int) -> tuple[int, ...]:
    """`value`, an integer or `rank` of them, as `rank` integers of at least `least`."""
    several = isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))
    values = value if several else (value,) * rank
    if len(values) == 1:
        values = tuple(values) * rank
    try:
        integers = tuple(operator.index(v) for v in values)
    except TypeError:
        raise TypeError(f"{name} must be an integer or {rank} of them, got {value!r}") from None
    if len(integers) != rank:
        raise ValueError(f"{name} must be an integer or {rank} of them, got {value!r}")
    if any(v < least for v in integers):
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    if any(v > _MOST for v in integers):
        raise ValueError(f"{name} must be at most {_MOST}, got {value!r}")
    return integers


def check_film_shape(name: str, shape: torch.Size, batch: int, channels: int, rank: int, channel_dim: int = 1) -> None:
    """Check that a gamma or beta has one of the shapes that stand for (N, K)."""
    sizes = tuple(shape)
    ones = (1,) * rank
    # lengths first: tuples of symbolic sizes guard on what they compare
    if len(sizes) in (1, 1 + rank) and _has_channels(sizes, channels, ones, channel_dim):
        return
    if len(sizes) in (2, 2 + rank) and _has_channels(sizes[1:], channels, ones, channel_dim) and sizes[0] in (1, batch):
        return
    first = channel_dim == 1
    one = (channels, *ones) if first else (*ones, channels)
    raise ValueError(
        f"{name} must have shape (N, K) = ({batch}, {channels}), (1, K) = (1, {channels}), (K,) = ({channels},), "
        f"{in_words(('K', *ones) if first else (*ones, 'K'))} or "
        f"{in_words(('N', 'K', *ones) if first else ('N', *ones, 'K'))} = {in_words((batch, *one))}, "
        f"got {in_words(shape)}"
    )


def _has_channels(sizes: tuple[int, ...], channels: int, ones: tuple[int, ...], channel_dim: int) -> bool:
    """Whether `sizes` are the channels alone, or with a 1 for each position."""
    own, others = (sizes[0], sizes[1:]) if channel_dim == 1 else (sizes[-1], sizes[:-1])
    return own == channels and others in ((), ones)


def check_choice(name: str, value: Any, choices: Any) -> str:
    """`value`, one of `choices`, or a ValueError that lists them."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def finite(name: str, value: Any) -> float:
    """`value` as a float. As in PyTorch, text is no number, and neither is a tensor whose gradient would be lost."""
    learnt = isinstance(value, Tensor) and value.requires_grad
    try:
        if learnt or isinstance(value, (str, bytes, bytearray)):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        what = "a tensor that requires a gradient" if learnt else repr(value)
        raise TypeError(f"{name} must be a number, got {what}") from None
    if number - number != 0:  # not finite; math.isfinite cannot be traced
        raise ValueError(f"{name} must be finite, got {value!r}")
    return number


def in_words(shape: Sequence[int | str]) -> str:
    """A shape as Python writes a tuple, symbolic sizes by their values."""
    sizes = ", ".join(str(size) for size in shape)
    return f"({sizes},)" if len(shape) == 1 else f"({sizes})"
