"""The checks at the front door: arguments as a user writes them in, a `Problem` and plain tensors out.

What can be said from shapes and options alone is worked out once and remembered, so that a call in a training loop
pays for a look-up; what depends on the tensors themselves is asked at every call.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .activations import ACTIVATIONS, FILM_POSITIONS
from .problem import Problem, writes_channels_last

Tensors = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]
Kind = tuple[torch.Size, torch.dtype, torch.device, torch.layout]
Kinds = tuple[Kind, Kind, Kind | None, Kind | None, Kind | None]
NAMES = ("input", "weight", "bias", "gamma", "beta")
_INTEGERS = frozenset((int,))
_ADDRESSABLE = 2**63 - 1  # bytes
_MOST = 2**31 - 1  # of a stride, padding, dilation or number of groups: products of these and a size fit 64 bits


class Sides(NamedTuple):
    """Padding that may be another behind a dimension than before it, as "same" makes it for even kernels."""

    before: tuple[int, ...]
    after: tuple[int, ...]


def prepare(
    tensors: Tensors,
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
    groups: int,
    activation: str,
    negative_slope: float,
    film_position: str,
    gamma_offset: float | Tensor,
) -> tuple[Problem, Tensors, bool]:
    """Check everything, and bring the tensors to the shapes of the design.

    `tensors` is (input, weight, bias, gamma, beta). Returns the Problem, the tensors (input with a batch, gamma and
    beta expanded to (N, K) without a copy), and whether the caller's input had no batch dimension.
    Raises TypeError or ValueError naming the argument.
    """
    if torch.compiler.is_compiling() or torch._C._is_any_autocast_enabled():  # Dynamo does not trace the latter
        tensors = _autocast(tensors)
    input, weight, bias, gamma, beta = tensors
    if not isinstance(input, Tensor) or not isinstance(weight, Tensor):
        _check_types(tensors)
    if isinstance(gamma_offset, Tensor):
        gamma, gamma_offset = _with_offset(weight, gamma, gamma_offset), 0.0
    try:
        unbatched = input.dim() == weight.dim() - 1
        if unbatched:
            input = input.unsqueeze(0)
        kinds = kinds_of(input, weight, bias, gamma, beta)
        channels_last = writes_channels_last(input, weight)
    except (AttributeError, RuntimeError):
        _check_types(tensors)
        raise
    problem = remembered_problem(
        kinds, _plain("stride", stride), _plain("padding", padding), _plain("dilation", dilation),
        _plain("groups", groups), activation, _number("negative_slope", negative_slope), film_position,
        _number("gamma_offset", gamma_offset), channels_last,
    )  # fmt: skip
    n_k = (problem.batch, problem.out_channels)
    return problem, (input, weight, bias, _expanded(gamma, n_k), _expanded(beta, n_k)), unbatched


def kinds_of(input: Tensor, weight: Tensor, bias: Tensor | None, gamma: Tensor | None, beta: Tensor | None) -> Kinds:
    """What the checks ask of the tensors."""
    return (
        (input.shape, input.dtype, input.device, input.layout),
        (weight.shape, weight.dtype, weight.device, weight.layout),
        None if bias is None else (bias.shape, bias.dtype, bias.device, bias.layout),
        None if gamma is None else (gamma.shape, gamma.dtype, gamma.device, gamma.layout),
        None if beta is None else (beta.shape, beta.dtype, beta.device, beta.layout),
    )


def remembered_problem(*options: Any) -> Problem:
    """`problem_of`, worked out once for the same kinds and options."""
    if torch.compiler.is_compiling():
        return problem_of(*options)
    try:
        return _remembered(*options)
    except TypeError:  # a symbolic size has no hash; and a real TypeError is raised again
        return problem_of(*options)


def _plain(name: str, value: Any) -> Any:
    """`value` as plain integers or a string, before it is looked up: 2.0 would be found where 2 has been, and a tensor
    by its identity, whatever has been written into it since."""
    kind = type(value)
    if kind is int or kind is str or (kind is tuple and _INTEGERS.issuperset(map(type, value))):
        return value
    several = isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))
    try:
        return tuple(map(operator.index, value)) if several else operator.index(value)
    except TypeError:
        if isinstance(value, str):
            return str(value)
        raise TypeError(f"{name} must be an integer or several of them, got {value!r}") from None


def _number(name: str, value: Any) -> float:
    return value if type(value) is float else _as_float(name, value)


def _with_offset(weight: Tensor, gamma: Tensor | None, offset: Tensor) -> Tensor:
    """`gamma + offset` for an offset that is a tensor: it may be learnt, and is never read on the host."""
    if offset.numel() != 1:
        raise ValueError(f"gamma_offset must be one number, got shape {_shape(offset.shape)}")
    offset = offset.reshape(())
    return weight.new_ones(weight.shape[:1]) + offset if gamma is None else gamma + offset


def _autocast(tensors: Tensors) -> Tensors:
    """The tensors as autocast has them for a convolution, where it is on for their device."""
    if not isinstance(tensors[0], Tensor):
        return tensors
    device = tensors[0].device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return tensors
    target = torch.get_autocast_dtype(device)

    def cast(t: Any) -> Any:
        return t.to(target) if isinstance(t, Tensor) and t.is_floating_point() and t.dtype != torch.float64 else t

    input, weight, bias, gamma, beta = tensors
    return cast(input), cast(weight), cast(bias), cast(gamma), cast(beta)


def _check_types(tensors: Sequence[Any]) -> None:
    """Raise for what is no dense tensor; of some others not even the shape can be asked."""
    for name, tensor in zip(NAMES, tensors, strict=True):
        if tensor is None and name not in ("input", "weight"):
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.is_nested or tensor.layout is not torch.strided:
            raise TypeError(_not_dense(name, "nested tensor" if tensor.is_nested else tensor.layout))


def _not_dense(name: str, found: object) -> str:
    return f"{name} must be a dense (torch.strided) tensor, got {found}"


def _check_kinds(kinds: Kinds) -> None:
    """Check that all are floating tensors of one dtype and device, and of the ranks of a convolution."""
    shape, dtype, device, layout = kinds[0]
    if layout is not torch.strided:
        raise TypeError(_not_dense("input", layout))
    if not (dtype.is_floating_point or dtype.is_complex):
        raise TypeError(f"input must be a floating-point tensor, got {dtype}")
    for name, kind in zip(NAMES[1:], kinds[1:], strict=True):
        if kind is None:
            continue
        if kind[1] != dtype:
            raise TypeError(f"{name} must have the dtype of input, {dtype}, got {kind[1]}")
        if kind[2] != device:
            raise ValueError(f"{name} must be on the device of input, {device}, got {kind[2]}")
        if kind[3] is not torch.strided:
            raise TypeError(_not_dense(name, kind[3]))
    weight_shape = kinds[1][0]
    if len(weight_shape) not in (3, 4, 5):
        raise ValueError(
            f"weight must have shape (K, C / groups, *kernel) with 1, 2 or 3 kernel sizes, got {_shape(weight_shape)}"
        )
    if len(shape) != len(weight_shape):  # a batch has been put in front of an input without one
        raise ValueError(
            f"input must have {len(weight_shape)} dimensions (N, C, *in), or {len(weight_shape) - 1} without a batch, "
            f"for a weight of shape {_shape(weight_shape)}; got {_shape(shape)}"
        )


def problem_of(
    kinds: Kinds,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    activation: str,
    negative_slope: float,
    film_position: str,
    gamma_offset: float,
    channels_last: bool,
) -> Problem:
    """The Problem of these tensors and options, or a TypeError or ValueError that names the argument."""
    _check_kinds(kinds)
    (input_shape, dtype, device, _), (weight_shape, *_) = kinds[:2]
    bias_shape, gamma_shape, beta_shape = (None if kind is None else kind[0] for kind in kinds[2:])
    rank = len(weight_shape) - 2
    strides = _per_dimension("stride", stride, rank, least=1)
    dilations = _per_dimension("dilation", dilation, rank, least=1)
    (groups,) = _per_dimension("groups", groups, 1, least=1)
    out_channels, in_channels = weight_shape[0], weight_shape[1] * groups
    if out_channels < 1 or any(size < 1 for size in weight_shape[2:]):
        raise ValueError(f"weight must have at least one output channel and kernel tap, got {_shape(weight_shape)}")
    if out_channels % groups:
        raise ValueError(f"groups must divide the output channels of weight, {out_channels}, got {groups}")
    if input_shape[1] != in_channels:
        raise ValueError(
            f"input must have {in_channels} channels for a weight of shape {_shape(weight_shape)} "
            f"and groups={groups}, got {input_shape[1]} in shape {_shape(input_shape)}"
        )
    if bias_shape is not None and tuple(bias_shape) != (out_channels,):
        raise ValueError(f"bias must have shape (K,) = ({out_channels},), got {_shape(bias_shape)}")
    for name, shape in (("gamma", gamma_shape), ("beta", beta_shape)):
        if shape is not None:
            _check_film_shape(name, shape, input_shape[0], out_channels, rank)
    check_choice("activation", activation, ACTIVATIONS)
    check_choice("film_position", film_position, FILM_POSITIONS)
    problem = Problem(
        input_shape=tuple(input_shape),
        weight_shape=tuple(weight_shape),
        stride=strides,
        padding=_padding(padding, strides, dilations, weight_shape[2:]),
        dilation=dilations,
        groups=groups,
        dtype=dtype,
        device=device,
        channels_last=channels_last,
        has_bias=bias_shape is not None,
        has_gamma=gamma_shape is not None,
        has_beta=beta_shape is not None,
        activation=activation,
        negative_slope=finite("negative_slope", negative_slope),
        film_position=film_position,
        gamma_offset=finite("gamma_offset", gamma_offset),
    )
    if any(size < 0 for size in problem.out_size):
        raise ValueError(
            f"input is smaller than the kernel: shape {_shape(input_shape)} with padding={padding!r} "
            f"and weight {_shape(weight_shape)}, dilation={dilation!r} gives output size {_shape(problem.out_size)}"
        )
    known = not torch.compiler.is_compiling() and _INTEGERS.issuperset(map(type, problem.out_shape))
    if known and math.prod(problem.out_shape) * dtype.itemsize > _ADDRESSABLE:
        raise ValueError(
            f"input of shape {_shape(input_shape)} with padding={padding!r} gives an output of shape "
            f"{_shape(problem.out_shape)}, which is more than can be addressed"
        )
    return problem


_remembered = functools.lru_cache(maxsize=4096)(problem_of)


def _per_dimension(name: str, value: Any, rank: int, least: int) -> tuple[int, ...]:
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,) * rank
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


def _padding(
    padding: Any, stride: tuple[int, ...], dilation: tuple[int, ...], kernel: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    if isinstance(padding, str):
        if padding == "valid":
            return ((0, 0),) * len(kernel)
        if padding != "same":
            raise ValueError(f"padding must be 'same', 'valid' or integers, got {padding!r}")
        if any(s != 1 for s in stride):
            raise ValueError(f"padding='same' needs stride 1, got stride={stride}")
        totals = tuple(d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        return tuple((total // 2, total - total // 2) for total in totals)
    if isinstance(padding, Sides):
        before = _per_dimension("padding_before", padding.before, len(kernel), least=0)
        return tuple(zip(before, _per_dimension("padding_after", padding.after, len(kernel), least=0), strict=True))
    return tuple((p, p) for p in _per_dimension("padding", padding, len(kernel), least=0))


def _check_film_shape(name: str, shape: torch.Size, batch: int, channels: int, rank: int) -> None:
    sizes = tuple(shape)
    ones = (1,) * rank
    # lengths first: tuples of symbolic sizes guard on what they compare
    if len(sizes) in (1, 1 + rank) and sizes[0] == channels and sizes[1:] in ((), ones):
        return
    if len(sizes) in (2, 2 + rank) and sizes[1] == channels and sizes[2:] in ((), ones) and sizes[0] in (1, batch):
        return
    raise ValueError(
        f"{name} must have shape (N, K) = ({batch}, {channels}), (1, K) = (1, {channels}), (K,) = ({channels},), "
        f"(K{', 1' * rank}) or (N, K{', 1' * rank}) = {_shape((batch, channels, *ones))}, got {_shape(shape)}"
    )


def _expanded(factor: Tensor | None, n_k: tuple[int, int]) -> Tensor | None:
    """A checked gamma or beta as (N, K), without a copy."""
    if factor is None or (factor.dim() == 2 and factor.shape == n_k):
        return factor
    if factor.dim() > 1:  # the other sizes are 1
        factor = factor.view(factor.shape[0] if factor.shape[1] == n_k[1] else 1, n_k[1])
    return factor if factor.shape == n_k else factor.expand(n_k)


def film_factor(name: str, factor: Any, n_k: tuple[int, int], spatial_rank: int) -> Tensor | None:
    """A gamma or beta as the user gave it, checked and expanded to (N, K)."""
    if factor is None:
        return None
    if not isinstance(factor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(factor).__name__}")
    _check_film_shape(name, factor.shape, *n_k, spatial_rank)
    return _expanded(factor, n_k)


def check_choice(name: str, value: Any, choices: Any) -> str:
    """`value`, one of `choices`, or a ValueError that lists them."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def finite(name: str, value: Any) -> float:
    """`value` as a float, or a TypeError or ValueError."""
    number = _as_float(name, value)
    if number - number != 0:  # not finite; math.isfinite cannot be traced
        raise ValueError(f"{name} must be finite, got {value!r}")
    return number


def _as_float(name: str, value: Any) -> float:
    """`value` as a float; as in PyTorch, text is no number, and neither is a tensor whose gradient would be lost."""
    learnt = isinstance(value, Tensor) and value.requires_grad
    try:
        if learnt or isinstance(value, (str, bytes, bytearray)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        what = "a tensor that requires a gradient" if learnt else repr(value)
        raise TypeError(f"{name} must be a number, got {what}") from None


def _shape(shape: Sequence[int]) -> str:
    sizes = ", ".join(str(size) for size in shape)
    return f"({sizes},)" if len(shape) == 1 else f"({sizes})"
