"""The reference formula as the last backend in the list: whatever plain PyTorch can do, it can.

Autograd itself differentiates it, so nothing is kept, and `backward`, which the registered operator has for whoever
pins this backend there, runs it again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..problems.conv_film import ConvFilm
from ..problems.norm_film import NormFilm
from .base import Backend, Kernels


class PlainKernels(Kernels):
    is_plain = True

    def __init__(self, record: type, formula: Callable[..., Tensor]) -> None:
        self.record, self.formula = record, formula

    def why_not(self, problem: Any) -> str | None:
        return None

    def kept_like(self, problem: Any) -> Tensor:
        return torch.empty(0, dtype=torch.uint8, device=problem.device)

    def forward(self, problem, tensors, for_backward):
        return self.formula(problem, *tensors), None

    def reads(self, problem, wanted):
        return True, True

    def graph(
        self, problem: Any, tensors: Sequence[Tensor | None], wanted: Sequence[bool]
    ) -> tuple[Tensor, list[Tensor]]:
        """y, and those of its leaves whose gradients are wanted: copies of the tensors, which have no history."""
        with torch.enable_grad():
            leaves = [None if t is None else t.detach().requires_grad_(w) for t, w in zip(tensors, wanted, strict=True)]
            y = self.formula(problem, *leaves)
        return y, [leaf for leaf, asked in zip(leaves, wanted, strict=True) if asked and leaf is not None]

    def backward(self, problem, grad, kept, tensors, wanted):
        y, leaves = self.graph(problem, tensors, wanted)
        found = iter(torch.autograd.grad(y, leaves, grad) if leaves else ())
        return tuple(next(found) if asked else None for asked in wanted)


class Plain(Backend):
    name = "reference"
    kernels = (
        PlainKernels(ConvFilm, lambda problem, *tensors: reference.forward(problem, *tensors)),
        PlainKernels(NormFilm, lambda problem, *tensors: reference.norm.forward(problem, *tensors)),
    )

    def unavailable(self) -> str | None:
        return None
