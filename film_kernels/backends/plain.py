"""The reference formula as the last backend in the list: whatever plain PyTorch can do, it can.

Autograd itself differentiates it, so nothing is kept, and `backward`, which the registered operator has for whoever
pins this backend there, runs it again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..problems.conv_film import ConvFilm
from .base import Backend, Kernels


class PlainConvFilm(Kernels):
    record = ConvFilm
    is_plain = True

    def why_not(self, problem: ConvFilm) -> str | None:
        return None

    def kept_like(self, problem: ConvFilm) -> Tensor:
        return torch.empty(0, dtype=torch.uint8, device=problem.device)

    def forward(self, problem, tensors, keep):
        return reference.forward(problem, *tensors), None

    def reads(self, problem, wanted):
        return True, True

    def backward(self, problem, grad, kept, tensors, wanted):
        with torch.enable_grad():
            leaves = [None if t is None else t.detach().requires_grad_(w) for t, w in zip(tensors, wanted, strict=True)]
            y = reference.forward(problem, *leaves)
        chosen = [leaf for leaf, asked in zip(leaves, wanted, strict=True) if asked]
        found = iter(torch.autograd.grad(y, chosen, grad) if chosen else ())
        return tuple(next(found) if asked else None for asked in wanted)


class Plain(Backend):
    name = "reference"
    kernels = (PlainConvFilm(),)

    def unavailable(self) -> str | None:
        return None
