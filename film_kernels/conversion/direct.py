"""The call that stands for a chain as it is: where the model's scale and shift are gamma and beta already, which is so
in most models, nothing is left to be worked out at every call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..functional import conv_film, norm_film
from ..norm_modules import rms_eps
from .match import Link, Match
from .nodes import same, tensor_of
from .records import Affine, Convolution

_NARROW = (torch.float16, torch.bfloat16)


def direct_call(match: Match) -> tuple[Callable[..., Tensor], dict[str, Any]] | None:
    """The operator that computes `match` by one call, and the arguments of that call; None where folding.py has to
    compose factors, or to convert them, at every call."""
    result = tensor_of(match.nodes[-1])
    film = _film(match)
    if film is None or result is None:
        return None
    given = _of_convolution(match, result) if match.norm is None else _of_norm(match, result)
    if given is None:
        return None
    operator, arguments = given
    channel_dim = arguments.get("channel_dim", 1)
    if not all(_is_factor(factor, result, channel_dim) for factor in film.values()):
        return None
    activation = match.activation
    arguments |= {**film, "activation": "none", "film_position": match.film_position}
    if activation is not None:
        arguments |= {"activation": activation.name, "negative_slope": activation.negative_slope}
    return operator, arguments


def _film(match: Match) -> dict[str, Any] | None:
    """gamma and beta, where FiLM is at most a scale and then a shift, and all that there is beside the activation."""
    links, others = match.before, match.after
    if match.film_position == "post":
        links, others = others, links
    factors = _factors(links)
    names = tuple(name for name, _ in factors or ())
    if others or factors is None or names not in ((), ("gamma",), ("beta",), ("gamma", "beta")):
        return None
    return dict(factors)


def _factors(links: Sequence[Link]) -> list[tuple[str, Any]] | None:
    """What `links` scale by and shift by, in their order; None where one divides, subtracts, or is a norm."""
    found: list[tuple[str, Any]] = []
    for link in links:
        operation = link.operation
        if not isinstance(operation, Affine) or operation.inverse:
            return None
        names = ("gamma", "beta") if operation.name == "film" else ("gamma" if operation.name == "scale" else "beta",)
        found += [(name, factor.value) for name, factor in zip(names, link.factors, strict=True)]
    return found


def _is_factor(value: Any, result: Tensor, channel_dim: int) -> bool:
    """Whether `value` is a gamma or beta for `result`: of its dtype, with a number for each channel and 1 for the
    positions. (A row of numbers, (N, C), would be one for each position in the model, where it has any.)"""
    factor = tensor_of(value)
    if factor is None or factor.dtype != result.dtype or factor.device != result.device:
        return False
    positions = result.dim() - 2
    expected = [result.shape[channel_dim], *(1,) * positions]
    if channel_dim == -1:
        expected.reverse()
    sizes = list(factor.shape)
    if len(sizes) == result.dim():
        if not any(same(sizes[0], size) for size in (1, result.shape[0])):
            return False
        sizes = sizes[1:]
    return len(sizes) == len(expected) and all(map(same, sizes, expected))


def _of_convolution(match: Match, result: Tensor) -> tuple[Callable[..., Tensor], dict[str, Any]] | None:
    """What the convolution is called with, where all is of one dtype, and the input has a batch."""
    assert isinstance(match.root, Convolution)  # whatever else a site begins with has a reason not to be fused
    arguments = dict(match.root.arguments)
    tensors = [tensor_of(arguments[name]) for name in ("input", "weight", "bias") if arguments.get(name) is not None]
    if any(tensor is None or tensor.dtype != result.dtype for tensor in tensors):
        return None
    if any(tensor.dim() != result.dim() for tensor in tensors[:2]):  # type: ignore[union-attr]
        return None
    return conv_film, arguments


def _of_norm(match: Match, result: Tensor) -> tuple[Callable[..., Tensor], dict[str, Any]] | None:
    """What the norm is called with, where weight and bias are of the input's dtype, or of float32 beside 16 bits."""
    arguments = dict(match.call)
    input = tensor_of(arguments["input"])
    given = {_dtype_of(arguments[name]) for name in ("weight", "bias") if arguments[name] is not None}
    allowed = ({result.dtype}, {torch.float32}) if result.dtype in _NARROW else ({result.dtype},)
    if input is None or input.dtype != result.dtype or (given and given not in allowed):
        return None
    if arguments["num_groups"] == 0:
        arguments["num_groups"] = result.shape[1]
        if not isinstance(result.shape[1], int):
            return None
    if arguments["norm"] == "rms":
        arguments["eps"] = rms_eps(result.dtype, arguments["eps"])
    return norm_film, arguments


def _dtype_of(value: Any) -> torch.dtype | None:
    tensor = tensor_of(value) if isinstance(value, fx.Node) else None
    return None if tensor is None else tensor.dtype
