"""What a call that autograd records asks of its problem and kernels, worked out once for all calls of its kind."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from .arguments import expanded
from .backends.base import ForBackward, Gradients, Kernels
from .derivatives import Wanted, with_strides_of_parameter
from .identity import by_identity
from .operators import Operator, Some, operator_of
from .problems import Problem

FACTORS = (3, 4)  # gamma and beta among the tensors


class Plan:
    """`shapes` are those of tensors, by their place, that a call takes as their user has them, gamma and beta of (N, K,
    1, 1) in place of (N, K); it gives gradients of these shapes."""

    def __init__(self, problem: Problem, kernels: Kernels, shapes: Mapping[int, torch.Size] = {}) -> None:
        self.problem, self.kernels, self._given = problem, kernels, shapes
        self.operator: Operator = operator_of(problem)
        expected = [shapes.get(at, shape) for at, shape in enumerate(problem.tensor_shapes)]
        shape_of_factors = problem.tensor_shapes[-1]
        sizes = [shapes[at] if at in shapes and shapes[at][0] == shape_of_factors[0] else () for at in FACTORS]
        self._forwards: dict[Wanted, ForBackward] = {}
        self._backward = kernels.prepared_backward(problem, sizes) or partial(kernels.backward, problem)
        self.saved_shapes, self.saved_dtypes = map(self.operator.pick_saved, (expected, problem.tensor_dtypes))

    def forward_for(self, needs_input_grad: Wanted) -> ForBackward:
        """Forward for a backward, as autograd says which of the plan, something more and the tensors have gradients."""
        found = self._forwards.get(needs_input_grad)
        if found is None:
            read = self.kernels.reads(self.problem, needs_input_grad[2:])
            found = self.kernels.prepared_for_backward(self.problem, read)
            if found is None:  # nothing is remembered: what they read may depend on what was tuned
                return partial(self.kernels.forward_for_backward, self.problem, read)
            self._forwards[needs_input_grad] = found
        return found

    def as_checked(self, tensors: Some) -> Some:
        """The tensors as the record has them."""
        if not self._given:
            return tensors
        results, channel_dim = [*tensors], getattr(self.problem, "channel_dim", 1)
        for at in self._given:
            results[at] = expanded(tensors[at], self.problem.tensor_shapes[at], channel_dim)  # type: ignore[arg-type]
        return results

    def gradients(self, grad: Tensor, kept: Tensor, tensors: Some, wanted: Wanted) -> Gradients:
        """The gradients as the tensors were given, None where `wanted` says so."""
        found = self._backward(grad, kept, tensors, wanted)
        return self.as_given(with_strides_of_parameter(self.operator, found, tensors))

    def as_given(self, found: Gradients) -> Gradients:
        """Gradients of the tensors as the record has them, as those were given."""
        if not self._given:
            return found
        results = [*found]
        for at, shape in self._given.items():
            gradient = results[at]
            if gradient is not None and gradient.shape != shape:
                rows = gradient if shape[0] == gradient.shape[0] else gradient.sum(0, keepdim=True)
                results[at] = rows.reshape(shape)
        return tuple(results)


@by_identity
def plan_of(problem: Problem, kernels: Kernels) -> Plan:
    """The plan for tensors as the record has them."""
    return Plan(problem, kernels)
