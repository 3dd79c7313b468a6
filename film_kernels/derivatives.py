"""The five gradients: by a backend's backward, or by the plain formula where they are to be differentiated again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference
from .arguments import Tensors
from .backends.base import Backend, Gradients
from .problem import Problem, gradient_strides

Wanted = Sequence[bool]


def gradients(
    problem: Problem, backend: Backend, grad: Tensor, kept: Tensor, tensors: Tensors, wanted: Wanted
) -> Gradients:
    """The gradients of (input, weight, bias, gamma, beta), None where `wanted` says so, that of the weight with the
    weight's strides: DistributedDataParallel and optimisers compare them."""
    grad_input, grad_weight, *rest = backend.backward(problem, grad, kept, *tensors, wanted)
    weight = tensors[1]
    if grad_weight is not None and grad_weight.stride() != weight.stride():
        grad_weight = with_strides(grad_weight, gradient_strides(weight))
    return grad_input, grad_weight, *rest  # type: ignore[return-value]


def differentiable_gradients(
    problem: Problem, grad: Tensor, tensors: Sequence[Tensor | None], wanted: Wanted
) -> Gradients:
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
    y = reference.forward(problem, *views)  # type: ignore[arg-type]
    found = iter(torch.autograd.grad(y, chosen, grad, create_graph=True, allow_unused=True))  # type: ignore[arg-type]
    return tuple(next(found) if asked else None for asked in wanted)  # type: ignore[return-value]


def with_strides(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    """`tensor`, or where its strides are others a copy that has them."""
    if tensor.stride() == strides:
        return tensor
    return tensor.new_empty_strided(tensor.shape, strides).copy_(tensor)
