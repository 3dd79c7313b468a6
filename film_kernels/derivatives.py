"""The gradients: by a backend's backward, or by the plain formula where they are to be differentiated again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .backends.base import Gradients, Kernels
from .layouts import gradient_strides
from .operators import Operator, Some, operator_of
from .problems import Problem

Wanted = Sequence[bool]


def gradients(
    problem: Problem, kernels: Kernels, grad: Tensor, kept: Tensor, tensors: Some, wanted: Wanted
) -> Gradients:
    """The gradients of the operator's tensors, None where `wanted` says so."""
    found = kernels.backward(problem, grad, kept, tensors, wanted)
    return with_strides_of_parameter(operator_of(problem), found, tensors)


def with_strides_of_parameter(operator: Operator, found: Gradients, tensors: Some) -> Gradients:
    """The gradients, that of the parameter with the parameter's strides: DistributedDataParallel and optimisers compare
    them."""
    at = operator.parameter_at
    gradient, parameter = found[at], tensors[at]
    if gradient is not None and parameter is not None and gradient.stride() != parameter.stride():
        return *found[:at], with_strides(gradient, gradient_strides(parameter)), *found[at + 1 :]
    return found


def differentiable_gradients(problem: Problem, grad: Tensor, tensors: Some, wanted: Wanted) -> Gradients:
    """`gradients` by the plain formula, to be differentiated again.

    It is differentiated with respect to fresh views of the arguments: they have histories of their own, in which one
    may depend on another, and which `torch.autograd.grad` must not walk into.
    """

    def fresh(tensor: Tensor | None, asked: bool) -> Tensor | None:
        if tensor is None:
            return None
        return tensor.detach().requires_grad_() if asked and not tensor.requires_grad else tensor.view_as(tensor)

    views = [fresh(tensor, asked) for tensor, asked in zip(tensors, wanted, strict=True)]
    chosen = [view for view, asked in zip(views, wanted, strict=True) if asked]
    y = operator_of(problem).plain(problem, *views)
    found = iter(torch.autograd.grad(y, chosen, grad, create_graph=True, allow_unused=True))  # type: ignore[arg-type]
    return tuple(next(found) if asked else None for asked in wanted)


def with_strides(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    """`tensor`, or where its strides are others a copy that has them."""
    if tensor.stride() == strides:
        return tensor
    return tensor.new_empty_strided(tensor.shape, strides).copy_(tensor)
