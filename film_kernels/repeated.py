"""Calls like one that was made before: with tensors of the same kinds, and the same options.

A front door asks forty questions of its arguments, and for small layers that takes longer than the kernels do. Here a
call is looked up by no more than tells it apart from others that are right, and given to kernels which check what they
are given themselves. Where they refuse it, or anything about it is out of the ordinary, it goes all the way, which says
what is wrong.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import arguments, norm_arguments, ops
from .backends import forget_with_choices, is_pinned
from .checks import INTEGERS
from .problems import conv_film as conv
from .problems import norm_film as norm
from .ways import Way, way_of

_MOST = 4096
_NUMBERS = frozenset((int, float, bool))
# By what tells calls apart. Nothing in it is a tensor or keeps one. Beside each way stand the options that were looked
# for by their identity, since 1.0 would be found where 1 has been: while they are kept, no other object has it.
_ways: dict[tuple[Any, ...], tuple[Way | None, tuple[Any, ...]]] = {}
forget_with_choices(_ways.clear)


def conv_film(tensors: conv.Tensors, options: tuple[Any, ...]) -> Tensor | None:
    """`functional.conv_film` without a backend that is named; None where it has to go all the way. `options` are in the
    order of `problems.conv_film.OPTIONS`. Not for torch.compile, whose guards see to all that is asked here.

    Raises TypeError or ValueError naming the argument, where it is the first call of its kind."""
    input, weight, bias, gamma, beta = tensors
    stride, padding, dilation, groups, activation, negative_slope, film_position, gamma_offset, keep = options
    try:
        if not input.is_cpu or _is_unusual():
            return None
        key = (
            input.shape, input.stride(), input.dtype, weight.shape, weight.stride(), weight.dtype,
            None if bias is None else bias.dtype, None if gamma is None else gamma.shape,
            None if beta is None else beta.shape,
            type(input), type(weight), type(bias), type(gamma), type(beta),
            id(stride), id(padding), id(dilation), id(groups),
            activation, negative_slope, film_position, gamma_offset, keep,
        )  # fmt: skip
        found = _ways.get(key)
    except (AttributeError, RuntimeError, TypeError):  # not tensors, not dense ones, or options that have no hash
        return None
    if found is None:
        if not _are_plain((stride, padding, dilation, groups), options[4:]):
            return None
        problem, _, unbatched = arguments.prepare(tensors, options)
        found = _remember(key, None if unbatched else problem, tensors, options[:4])
    return _call(found[0], tensors)


def norm_film(tensors: norm.Tensors, options: tuple[Any, ...]) -> Tensor | None:
    """The same for `functional.norm_film` without running statistics, of a norm that has none. `options` are in the
    order of `problems.norm_film.OPTIONS`."""
    input, weight, bias, gamma, beta = tensors
    kind, num_groups, eps, activation, negative_slope, film_position, gamma_offset, channel_dim = options
    try:
        if not input.is_cpu or _is_unusual():
            return None
        key = (
            input.shape, input.stride(), input.dtype,
            None if weight is None else weight.dtype, None if bias is None else bias.dtype,
            None if gamma is None else gamma.shape, None if beta is None else beta.shape,
            type(input), type(weight), type(bias), type(gamma), type(beta),
            id(num_groups), id(channel_dim),
            kind, eps, activation, negative_slope, film_position, gamma_offset,
        )  # fmt: skip
        found = _ways.get(key)
    except (AttributeError, RuntimeError, TypeError):
        return None
    if found is None:
        if not _are_plain((num_groups, channel_dim), (kind, *options[2:7])):
            return None
        problem, _ = norm_arguments.prepare(tensors, options, None)
        found = _remember(key, problem, tensors, (num_groups, channel_dim))
    return _call(found[0], tensors)


def _is_unusual() -> bool:
    """Whether there is a pin, autocast, or someone who must see operators (`ops.is_watched`, but for the tensors)."""
    return (
        is_pinned()
        or torch._C._is_any_autocast_enabled()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
        or torch._C._is_tracing()
    )


def _are_plain(by_identity: tuple[Any, ...], by_value: tuple[Any, ...]) -> bool:
    """Whether the options never change, and those of the same value mean the same."""
    return all(
        value is None or type(value) in (int, str) or (type(value) is tuple and INTEGERS.issuperset(map(type, value)))
        for value in by_identity
    ) and all(type(value) is str or type(value) in _NUMBERS for value in by_value)


def _remember(
    key: tuple[Any, ...], problem: Any, tensors: Any, by_identity: tuple[Any, ...]
) -> tuple[Way | None, tuple[Any, ...]]:
    """The way of a call, taken from the first of its kind on: a checkpoint compares what is saved then with what is
    saved when that call is made once more."""
    way = None if problem is None or not ops.are_plain(tensors) else way_of(problem, tensors)
    if len(_ways) >= _MOST:
        _ways.clear()
    found = _ways[key] = (way, by_identity)
    return found


def _call(way: Way | None, tensors: Any) -> Tensor | None:
    if way is None:
        return None
    input, weight, bias, gamma, beta = tensors
    try:
        if not torch.is_grad_enabled() or not (
            (weight is not None and weight.requires_grad)
            or input.requires_grad
            or (gamma is not None and gamma.requires_grad)
            or (beta is not None and beta.requires_grad)
            or (bias is not None and bias.requires_grad)
        ):  # fmt: skip
            return way.forward(input, weight, bias, gamma, beta)
        if way.may_be_apart and gamma.requires_grad and not weight.requires_grad:
            return None
        return ops.recorded(way.plan, tensors)
    except RuntimeError:  # kernels refuse it
        return None
