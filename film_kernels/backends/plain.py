"""The reference formula as the last backend in the list: whatever plain PyTorch can do, it can.

Autograd itself differentiates it, so it has a `forward` alone, and keeps nothing of its own.
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
