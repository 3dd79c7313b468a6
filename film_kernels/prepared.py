"""A call that is made again and again with tensors of the same kinds.

What there is to find out about these is found out at the first. Where memory has been swept out of the caches in
between, as in a whole model, that takes several times as long as in a loop of one layer, and longer than small kernels
take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from . import arguments, norm_arguments, ops
from .backends import is_pinned
from .functional import conv_film, norm_film
from .packed import PackedOnce, conv_film_packed
from .problems import conv_film as conv
from .problems import norm_film as norm
from .ways import Way, factor_shapes, way_of

FRONTS = (conv_film, norm_film, conv_film_packed)


class Prepared:
    """`front(*tensors, **options)`, by one of FRONTS and its five tensors, for a caller who sees to it that the tensors
    of all calls are of the same classes, shapes, strides, dtypes and devices, and that nobody watches or transforms
    them who did not at the first call. (Dynamo's guards see to it.)

    Whether a backend is pinned, autocast is on, and gradients are recorded is asked at every call."""

    def __init__(self, front: Callable[..., Tensor], options: Mapping[str, Any]) -> None:
        self.__name__ = front.__name__
        self._front, self._options = front, dict(options)
        self._is_norm, self._packs, self._is_conv = (front is one for one in (norm_film, conv_film_packed, conv_film))
        self._was_asked = False
        self._forward: Callable[..., Tensor] | None = None  # where gradients are not recorded
        self._way: Way | None = None  # there, and where they are

    def __call__(self, input: Tensor, weight: Any, bias: Any, gamma: Any, beta: Any) -> Tensor:
        if is_pinned() or torch._C._is_any_autocast_enabled():
            return self._by_the_front((input, weight, bias, gamma, beta))
        if not self._was_asked:
            self._prepare((input, weight, bias, gamma, beta))
        forward, way = self._forward, self._way
        if forward is None:
            return self._by_the_front((input, weight, bias, gamma, beta))
        if not torch.is_grad_enabled():
            return forward(input, weight, bias, gamma, beta)
        if way is None or (way.may_be_apart and gamma.requires_grad and not weight.requires_grad):
            return self._by_the_front((input, weight, bias, gamma, beta))
        return ops.recorded(way.plan, (input, weight, bias, gamma, beta))

    def _by_the_front(self, tensors: tuple[Any, ...]) -> Tensor:
        return self._front(**dict(zip(conv.TENSORS, tensors, strict=True)), **self._options)

    def _prepare(self, tensors: tuple[Any, ...]) -> None:
        """Find the short way, if there is one. It is taken from the first call on: a checkpoint compares what is saved
        then with what is saved when that call is made once more."""
        self._was_asked = True
        problem = None if ops.is_watched(tensors) else self._problem_of(tensors)
        if problem is None:
            return
        if self._packs:
            self._forward = None if factor_shapes(problem, tensors) is None else PackedOnce.of(problem)
        else:
            self._way = way_of(problem, tensors)
            self._forward = None if self._way is None else self._way.forward

    def _problem_of(self, tensors: tuple[Any, ...]) -> Any:
        """The record of such a call; None where there is more to it than that."""
        signature = inspect.signature(norm_film if self._is_norm else conv_film)
        call = signature.bind(**dict(zip(conv.TENSORS, tensors, strict=True)), **self._options)
        call.apply_defaults()
        given = call.arguments
        if isinstance(given["gamma_offset"], Tensor) or given["backend"] is not None:
            return None
        if self._is_norm:
            if given["norm"] == "batch" or given["running_mean"] is not None or given["running_var"] is not None:
                return None
            return norm_arguments.prepare(tensors, tuple(given[name] for name in norm.OPTIONS), None)[0]  # type: ignore[arg-type]
        problem, _, unbatched = arguments.prepare(tensors, tuple(given[name] for name in conv.OPTIONS))  # type: ignore[arg-type]
        return None if unbatched else problem
