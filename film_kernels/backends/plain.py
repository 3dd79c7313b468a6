"""The reference formula as the last backend in the list: whatever plain PyTorch can do, it can.

Autograd itself differentiates it wherever it can; `backward` is for callers that see only operators.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..problem import Problem
from .base import Backend


class Plain(Backend):
    name = "reference"

    def unavailable(self) -> str | None:
        return None

    def why_not(self, problem: Problem) -> str | None:
        return None

    def kept_like(self, problem: Problem) -> Tensor:
        return torch.empty(0, dtype=torch.uint8, device=problem.device)

    def forward(self, problem, input, weight, bias, gamma, beta, keep):
        return reference.forward(problem, input, weight, bias, gamma, beta), None

    def backward(self, problem, grad, kept, input, weight, bias, gamma, beta, wanted):
        with torch.enable_grad():
            tensors = [t if t is None else t.detach() for t in (input, weight, bias, gamma, beta)]
            chosen = [t.requires_grad_() for t, asked in zip(tensors, wanted, strict=True) if asked]
            found = iter(torch.autograd.grad(reference.forward(problem, *tensors), chosen, grad))
        return tuple(next(found) if asked else None for asked in wanted)
