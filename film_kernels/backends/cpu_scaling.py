"""A convolution that only scales each channel: depthwise, of one tap that goes over every position.

It is the modulation that norm_film's compiled kernels make of an input that is not normalised, weight and bias being
one more scale and shift in front of FiLM, and it takes a pass over memory each way. A kernel that loops over products
of channels has nothing to loop over there."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from ..problems.conv_film import ConvFilm
from . import cpu_library, cpu_pass, library
from .base import AS_ROWS, Backward, Kernels
from .norm_film import read_of_modulation

# Of samples with fewer positions, what the pass holds for each sample and channel would be as large as they are.
_LEAST_POSITIONS = 16


def is_scaling(problem: ConvFilm) -> bool:
    """Whether each output element is one input element times a number of its channel, and samples are no smaller than
    a pass should have them."""
    return (
        problem.groups == problem.out_channels
        and problem.weight_shape[1] == 1
        and all(size == 1 for size in (*problem.weight_shape[2:], *problem.stride))
        and not any(before or after for before, after in problem.padding)
        and math.prod(problem.input_shape[2:]) >= _LEAST_POSITIONS
    )


class CpuScaling(Kernels):
    """For problems of which `is_scaling` is true."""

    record = ConvFilm

    def why_not(self, problem: ConvFilm) -> str | None:
        return cpu_library.why_not(problem)

    def is_slow(self, problem: ConvFilm, use: str = "alone") -> bool:
        """A pass is never slower than a convolution."""
        return False

    def kept_like(self, problem: ConvFilm) -> Tensor:
        """Nothing is kept: what the activation was given is made again."""
        return library.nothing_like(problem)

    def reads(self, problem, wanted):
        return read_of_modulation(problem, wanted)

    def forward(self, problem, tensors, for_backward):
        return self.prepared(problem)(*tensors), (library.nothing_like(problem) if for_backward else None)

    def prepared(self, problem: ConvFilm) -> Callable[..., Tensor]:
        def forward(input, weight, bias, gamma, beta):
            return cpu_pass.forward(problem, input, gamma, beta, weight.view(-1), bias)

        return forward

    def backward(self, problem, grad, kept, tensors, wanted):
        return self.prepared_backward(problem)(grad, kept, tensors, wanted)

    def prepared_backward(self, problem, sizes=AS_ROWS) -> Backward:
        def backward(grad, kept, tensors, wanted):
            input, weight, *others = tensors
            factors = (weight.view(-1), *others)
            dx, dw, *found = cpu_pass.gradients(problem, grad, input, factors, wanted, sizes)
            return dx, (None if dw is None else dw.view(problem.weight_shape)), *found

        return backward
