"""The checks at the front door: arguments as a user writes them in, a `Problem` and plain tensors out.

What can be said from shapes and options alone is worked out once and remembered, so that a call in a training loop
pays for a look-up; what depends on the tensors themselves is asked at every call.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .activations import ACTIVATIONS, FILM_POSITIONS
from .problem import Problem, is_channels_last

Tensors = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]
Kind = tuple[torch.Size, torch.dtype, torch.device]
Kinds = tuple[Kind, Kind, Kind | None, Kind | None, Kind | None]
_NAMES = ("input", "weight", "bias", "gamma", "beta")


def prepare(
    tensors: Tensors,
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
    groups: int,
    activation: str,
    negative_slope: float,
    film_position: str,
    gamma_offset: float,
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
    unbatched = input.dim() == weight.dim() - 1
    if unbatched:
        input = input.unsqueeze(0)
    try:
        kinds = (
            (input.shape, input.dtype, input.device), (weight.shape, weight.dtype, weight.device),
            None if bias is None else (bias.shape, bias.dtype, bias.device),
            None if gamma is None else (gamma.shape, gamma.dtype, gamma.device),
            None if beta is None else (beta.shape, beta.dtype, beta.device),
        )  # fmt: skip
    except AttributeError:
        _check_types(tensors)
        raise
    options = (
        kinds, stride, padding, dilation, groups, is_channels_last(input),
        activation, negative_slope, film_position, gamma_offset,
    )  # fmt: skip
    if torch.compiler.is_compiling():
        problem = problem_of(*options)
    else:
        try:
            problem = _remembered(*options)
        except TypeError:  # a list or a symbolic size has no hash; and a real TypeError is raised again
            problem = problem_of(*options)
    n_k = (problem.batch, problem.out_channels)
    return problem, (input, weight, bias, _expanded(gamma, n_k), _expanded(beta, n_k)), unbatched


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
    for name, tensor in zip(_NAMES, tensors, strict=True):
        if not isinstance(tensor, Tensor) and (tensor is not None or name in ("input", "weight")):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")


def _check_kinds(kinds: Kinds) -> None:
    """Check that all are floating tensors of one dtype and device, and of the ranks of a convolution."""
    shape, dtype, device = kinds[0]
    if not (dtype.is_floating_point or dtype.is_complex):
        raise TypeError(f"input must be a floating-point tensor, got {dtype}")
    for name, kind in zip(_NAMES[1:], kinds[1:], strict=True):
        if kind is None:
            continue
        if not isinstance(kind[1], torch.dtype):  # of an array of another library, say
            raise TypeError(f"{name} must be a torch.Tensor, got something with dtype {kind[1]!r}")
        if kind[1] != dtype:
            raise TypeError(f"{name} must have the dtype of input, {dtype}, got {kind[1]}")
        if kind[2] != device:
            raise ValueError(f"{name} must be on the device of input, {device}, got {kind[2]}")
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
    channels_last: bool,
    activation: str,
    negative_slope: float,
    film_position: str,
    gamma_offset: float,
) -> Problem:
    """The Problem of these tensors and options, or a TypeError or ValueError that names the argument."""
    _check_kinds(kinds)
    (input_shape, dtype, device), (weight_shape, _, _) = kinds[:2]
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
    return tuple((p, p) for p in _per_dimension("padding", padding, len(kernel), least=0))


def _check_film_shape(name: str, shape: torch.Size, batch: int, channels: int, rank: int) -> None:
    sizes = tuple(shape)
    if len(sizes) == 1 and sizes[0] == channels:  # lengths first: tuples of symbolic sizes guard on what they compare
        return
    ones = (1,) * rank
    if len(sizes) in (2, 2 + rank) and sizes[1] == channels and sizes[2:] in ((), ones) and sizes[0] in (1, batch):
        return
    raise ValueError(
        f"{name} must have shape (N, K) = ({batch}, {channels}), (1, K) = (1, {channels}), (K,) = ({channels},) or "
        f"(N, K{', 1' * rank}) = {_shape((batch, channels, *ones))}, got {_shape(shape)}"
    )


def _expanded(factor: Tensor | None, n_k: tuple[int, int]) -> Tensor | None:
    """A checked gamma or beta as (N, K), without a copy."""
    if factor is None or (factor.dim() == 2 and factor.shape == n_k):
        return factor
    if factor.dim() > 2:
        factor = factor.view(factor.shape[0], n_k[1])  # the other sizes are 1
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
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if number - number != 0:  # not finite; math.isfinite cannot be traced
        raise ValueError(f"{name} must be finite, got {value!r}")
    return number


def _shape(shape: Sequence[int]) -> str:
    sizes = ", ".join(str(size) for size in shape)
    return f"({sizes},)" if len(shape) == 1 else f"({sizes})"
