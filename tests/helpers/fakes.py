"""What registered operators tell whoever traces them, against what they return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode


def assert_fakes_are_like_results(name: str, tensors: Sequence[Tensor], options: Sequence[Any]) -> None:
    """Forward and backward of an operator, of an input, weight, bias and gamma without a beta."""
    operators = torch.ops.film_kernels
    forward, backward = getattr(operators, name), getattr(operators, f"{name}_backward")

    def both(*tensors):
        y, kept = forward(*tensors, None, *options, True)
        return [y, kept, *backward(torch.ones_like(y), kept, *tensors, None, *options, [True] * 4 + [False])]

    real = both(*tensors)
    with FakeTensorMode() as mode:
        fake = both(*(mode.from_tensor(t) for t in tensors))
    for found, told in zip(real, fake, strict=True):
        assert (found.shape, found.stride(), found.dtype) == (told.shape, told.stride(), told.dtype)
