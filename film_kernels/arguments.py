"""From arguments as a user writes them to a record and plain tensors.

What can be said from shapes and options alone is worked out once and remembered, so that a call in a training loop
pays for a look-up; what depends on the tensors themselves is asked at every call.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .checks import INTEGERS, Kind, check_film_shape, check_types, in_words
from .layouts import writes_channels_last
from .problems.conv_film import OPTIONS, REQUIRED, TENSORS, ConvFilm, Tensors, problem_of

_AS_THEY_ARE = frozenset((int, float, str, type(None)))
_OFFSET = OPTIONS.index("gamma_offset")
_HAVE_AUTOCAST = frozenset(  # asked beforehand, for Dynamo does not trace the question before PyTorch 2.12
    device for device in ("cpu", "cuda", "xpu", "mps", "hpu", "mtia", "xla") if torch.amp.is_autocast_available(device)
)
_read_kind = operator.attrgetter("shape", "dtype", "device", "layout")  # kind_of, without Python's cost at every call


def prepare(tensors: Tensors, options: tuple[Any, ...]) -> tuple[ConvFilm, Tensors, bool]:
    """Check the arguments of conv_film, and bring the tensors to the shapes of the design.

    `tensors` is (input, weight, bias, gamma, beta), and `options` are the others in the order of
    `problems.conv_film.OPTIONS`. Returns the record, the tensors (input with a batch, gamma and beta expanded to (N, K)
    without a copy), and whether the caller's input had no batch dimension.
    Raises TypeError or ValueError naming the argument.
    """
    if torch.compiler.is_compiling() or torch._C._is_any_autocast_enabled():  # Dynamo does not trace the latter
        tensors = _autocast(tensors)
    input, weight, bias, gamma, beta = tensors
    if not isinstance(input, Tensor) or not isinstance(weight, Tensor):
        check_types(TENSORS, tensors, REQUIRED)
    if isinstance(options[_OFFSET], Tensor):
        gamma = _with_offset(weight, gamma, options[_OFFSET])
        options = (*options[:_OFFSET], 0.0, *options[_OFFSET + 1 :])
    try:
        unbatched = input.dim() == weight.dim() - 1
        if unbatched:
            input = input.unsqueeze(0)
        kinds = kinds_of((input, weight, bias, gamma, beta))
        channels_last = writes_channels_last(input, weight)
    except (AttributeError, RuntimeError):
        check_types(TENSORS, tensors, REQUIRED)
        raise
    problem = remembered(problem_of, kinds, channels_last, plain_options(options))
    n_k = (problem.batch, problem.out_channels)
    return problem, (input, weight, bias, expanded(gamma, n_k), expanded(beta, n_k)), unbatched


def kind_of(tensor: Tensor | None) -> Kind | None:
    """What the checks ask of a tensor."""
    return None if tensor is None else (tensor.shape, tensor.dtype, tensor.device, tensor.layout)


def kinds_of(tensors: Sequence[Tensor | None]) -> tuple[Kind | None, ...]:
    """`kind_of` each. Raises AttributeError where something else is among them."""
    if torch.compiler.is_compiling():  # Dynamo does not trace _read_kind
        return tuple(map(kind_of, tensors))
    return tuple([None if tensor is None else _read_kind(tensor) for tensor in tensors])


def remembered(
    problem_of: Callable[..., Any], kinds: tuple[Kind | None, ...], channels_last: bool, options: Sequence[Any]
) -> Any:
    """`problem_of(kinds, channels_last, options)`, worked out once for the same arguments."""
    if torch.compiler.is_compiling():
        return problem_of(kinds, channels_last, options)
    try:
        return _remembered(problem_of, kinds, channels_last, options, tuple(map(type, options)))
    except TypeError:  # a symbolic size has no hash; and a real TypeError is raised again
        return problem_of(kinds, channels_last, options)


@functools.lru_cache(maxsize=4096)
def _remembered(
    problem_of: Callable[..., Any],
    kinds: tuple[Kind | None, ...],
    channels_last: bool,
    options: Sequence[Any],
    types: tuple[type, ...],  # tell options apart too: 2.0 would be found where 2 has been
) -> Any:
    return problem_of(kinds, channels_last, options)


def plain_options(options: tuple[Any, ...]) -> tuple[Any, ...]:
    """The options as they are looked up."""
    return options if _AS_THEY_ARE.issuperset(map(type, options)) else tuple(map(_plain, options))


def _plain(value: Any) -> Any:
    """`value` of plain numbers or a string, where it can be, before it is looked up: several as a tuple, for a list has
    no hash, and a tensor as its number, for it is looked up by its identity, whatever has been written into it since.
    What is neither is left to the checks, which refuse it."""
    kind = type(value)
    if kind in _AS_THEY_ARE or (kind is tuple and INTEGERS.issuperset(map(type, value))):
        return value
    if isinstance(value, str):
        return str(value)
    several = isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray))
    try:
        return tuple(map(operator.index, value)) if several else operator.index(value)
    except TypeError:
        return _AsWritten(value) if several else _as_float(value)


class _AsWritten(tuple):
    """What is not looked up, for (2.0, 2.0) would be found where (2, 2) has been."""

    __hash__ = None  # type: ignore[assignment]


def _as_float(value: Any) -> Any:
    learnt = isinstance(value, Tensor) and value.requires_grad
    try:
        return value if learnt or isinstance(value, (bytes, bytearray)) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return value


def _with_offset(weight: Tensor, gamma: Tensor | None, offset: Tensor) -> Tensor:
    """`gamma + offset` for an offset that is a tensor: it may be learnt, and is never read on the host."""
    offset = one_number("gamma_offset", offset)
    return weight.new_ones(weight.shape[:1]) + offset if gamma is None else gamma + offset


def one_number(name: str, tensor: Tensor) -> Tensor:
    """A tensor of one element, without dimensions."""
    if tensor.numel() != 1:
        raise ValueError(f"{name} must be one number, got shape {in_words(tensor.shape)}")
    return tensor.reshape(())


def is_autocast(input: Any) -> bool:
    """Whether autocast is on for the device of `input`."""
    if not isinstance(input, Tensor):
        return False
    device = input.device.type
    return has_autocast(device) and torch.is_autocast_enabled(device)


def has_autocast(device: str) -> bool:
    """Whether there is autocast for devices of that type."""
    if device in _HAVE_AUTOCAST:
        return True
    return not torch.compiler.is_compiling() and torch.amp.is_autocast_available(device)


def _autocast(tensors: Tensors) -> Tensors:
    """The tensors as autocast has them for a convolution, where it is on for their device."""
    if not is_autocast(tensors[0]):
        return tensors
    target = torch.get_autocast_dtype(tensors[0].device.type)

    def cast(t: Any) -> Any:
        return t.to(target) if isinstance(t, Tensor) and t.is_floating_point() and t.dtype != torch.float64 else t

    input, weight, bias, gamma, beta = tensors
    return cast(input), cast(weight), cast(bias), cast(gamma), cast(beta)


def expanded(factor: Tensor | None, n_k: tuple[int, int], channel_dim: int = 1) -> Tensor | None:
    """A checked gamma or beta as (N, K), without a copy."""
    if factor is None or (factor.dim() == 2 and factor.shape == n_k):
        return factor
    if factor.dim() > 1:  # the other sizes are 1
        rows = factor.shape[0] if factor.shape[channel_dim] == n_k[1] else 1
        factor = factor.view(rows, n_k[1])
    return factor if factor.shape == n_k else factor.expand(n_k)


def film_factor(name: str, factor: Any, n_k: tuple[int, int], spatial_rank: int) -> Tensor | None:
    """A gamma or beta as the user gave it, checked and expanded to (N, K)."""
    if factor is None:
        return None
    if not isinstance(factor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(factor).__name__}")
    check_film_shape(name, factor.shape, *n_k, spatial_rank)
    return expanded(factor, n_k)
