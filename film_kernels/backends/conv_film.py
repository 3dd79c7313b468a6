"""What the kernels of conv_film have in common, whatever they are written in: three of them, and bits for backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..problems.conv_film import ConvFilm, Tensors
from .base import Gradients, Kernels


class ConvFilmKernels(Kernels):
    """Three kernels: `forward`, `grad_input`, `grad_weight`."""

    record = ConvFilm

    def reads(self, problem: ConvFilm, wanted: Sequence[bool]) -> tuple[bool, ...]:
        """dgamma = <W, U> + bias * sum u"""
        return wanted[3], False

    def grad_input(self, problem: ConvFilm, grad: Tensor, kept: Tensor, weight: Tensor, gamma: Tensor | None) -> Tensor:
        """dx, of the input's shape, in its memory format."""
        raise NotImplementedError

    def grad_weight(
        self,
        problem: ConvFilm,
        grad: Tensor,
        kept: Tensor,
        tensors: Tensors,
        wanted: Sequence[bool],
    ) -> Gradients:
        """(dW, db, dgamma, dbeta), None where `wanted`, of these four, says so."""
        raise NotImplementedError

    def backward(
        self,
        problem: ConvFilm,
        grad: Tensor,
        kept: Tensor,
        tensors: Tensors,
        wanted: Sequence[bool],
    ) -> Gradients:
        """The five gradients, None where `wanted` says so."""
        _, weight, _, gamma, _ = tensors
        grad_input = self.grad_input(problem, grad, kept, weight, gamma) if wanted[0] else None
        if not any(wanted[1:]):
            return grad_input, None, None, None, None
        return grad_input, *self.grad_weight(problem, grad, kept, tensors, wanted[1:])


def bits_like(problem: ConvFilm) -> Tensor:
    """The bits of all channels of a position, in whole bytes: (N * positions, ceil(K / 8)); none without an
    activation."""
    positions = 0
    if problem.activation != "none":
        positions = problem.batch
        for size in problem.out_size:
            positions *= size
    return torch.empty(positions, (problem.out_channels + 7) // 8, dtype=torch.uint8, device=problem.device)
