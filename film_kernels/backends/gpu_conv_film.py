"""What the kernels of conv_film for GPUs have in common: a user chooses what is kept (`ConvFilm.keep`), and with it how
backward goes.

    keep       forward                                  backward
    "fast"     the library's convolution and one pass   one pass, and the library's two gradients
    "bits"     one fused kernel                         the fused grad_input and grad_weight
    "least"    one fused kernel                         that kernel once more, with the pass that "fast" makes at its
                                                        end, and the library's two gradients

When they were measured, the fused gradients reached a third of the library's rate on tensor cores, so that they won
only where memory is the bound: with few input channels. Their main loops issue less now, and wait for a measurement.
Without a gradient, forward is one fused kernel. What serves by itself was measured on an NVIDIA H200 (bench/NOTES.md),
and stands in each backend's `as_kept` and `is_slow`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..problems.conv_film import ConvFilm, Tensors
from . import library
from .base import Gradients
from .conv_film import ConvFilmKernels

Copies = tuple[Tensor | None, Tensor | None]  # of bias (K,) and beta (N, K), dense


class GpuConvFilmKernels(ConvFilmKernels):
    """Four kernels beside `grad_input` and `grad_weight`. Where one returns (dz, db, dgamma, dbeta), dz is the gradient
    of the convolution's result, laid out as it, and each is None where `wanted`, of these four, says so."""

    def as_kept(self, problem: ConvFilm) -> ConvFilm:
        """`problem` with what its `keep` comes to: "fast" is "bits" where these kernels were measured to be faster."""
        return problem

    def bits_like(self, problem: ConvFilm) -> Tensor:
        """An empty tensor of the shape and strides of the bits."""
        raise NotImplementedError

    def fused(
        self, problem: ConvFilm, tensors: Tensors, with_bits: bool, bias_copy: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(y, bits or None) of the operator's tensors; the bias is copied into `bias_copy` where that is given."""
        raise NotImplementedError

    def after(
        self,
        problem: ConvFilm,
        result: Tensor,
        bias: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        out: Tensor,
        copies: Copies = (None, None),
    ) -> Tensor:
        """y of `result`, conv(input, weight), dense in the problem's memory format, in one pass into `out`, which may
        be `result`; returns `out`. bias and beta are copied into `copies` where these are given."""
        raise NotImplementedError

    def before(
        self,
        problem: ConvFilm,
        grad: Tensor,
        result: Tensor,
        bias: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        wanted: Sequence[bool],
    ) -> Gradients:
        """(dz, db, dgamma, dbeta) of `result`, in one pass."""
        raise NotImplementedError

    def recompute(self, problem: ConvFilm, grad: Tensor, tensors: Tensors, wanted: Sequence[bool]) -> Gradients:
        """(dz, db, dgamma, dbeta) of the convolution's result, which is computed once more: by the library, where there
        is no kernel that does both."""
        input, weight, bias, gamma, beta = tensors
        result = library.convolution(problem, input, weight, None)
        return self.before(problem, grad, result, bias, gamma, beta, wanted)

    def kept_like(self, problem: ConvFilm) -> Tensor:
        problem = self.as_kept(problem)
        if problem.keep == "bits":
            return self.bits_like(problem)
        return library.result_like(problem) if library.keeps_result(problem) else library.nothing_like(problem)

    def reads(self, problem: ConvFilm, wanted: Sequence[bool]) -> tuple[bool, ...]:
        problem = self.as_kept(problem)
        if problem.keep == "bits":
            return super().reads(problem, wanted)
        modulated = not library.is_only_shifted(problem)
        return modulated, modulated and problem.film_position == "pre"

    def forward(self, problem: ConvFilm, tensors: Tensors, for_backward: bool) -> tuple[Tensor, Tensor | None]:
        return self._forward(problem, tensors, for_backward, (None, None))

    def forward_and_copy(
        self, problem: ConvFilm, tensors: Tensors, copied: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """A copy is written by a kernel that has read the tensor: one more would take as long to start as it works."""
        problem = self.as_kept(problem)
        bias, beta = copied
        bias = None if bias is None else torch.empty_like(bias, memory_format=torch.contiguous_format)
        by_the_pass = beta is not None and library.keeps_result(problem)
        if beta is not None:
            contiguous = torch.contiguous_format
            beta = torch.empty_like(beta, memory_format=contiguous) if by_the_pass else beta.clone()
        y, kept = self._forward(problem, tensors, True, (bias, beta if by_the_pass else None))
        assert kept is not None
        return y, kept, [bias, beta]

    def _forward(
        self, problem: ConvFilm, tensors: Tensors, for_backward: bool, copies: Copies
    ) -> tuple[Tensor, Tensor | None]:
        problem = self.as_kept(problem)
        if for_backward and library.keeps_result(problem):
            input, weight, bias, gamma, beta = tensors
            result = library.convolution(problem, input, weight, None)
            return self.after(problem, result, bias, gamma, beta, torch.empty_like(result), copies), result
        with_bits = for_backward and problem.keep == "bits"
        y, bits = self.fused(problem, tensors, with_bits, copies[0])
        return y, (library.nothing_like(problem) if for_backward and not with_bits else bits)

    def backward(
        self, problem: ConvFilm, grad: Tensor, kept: Tensor, tensors: Tensors, wanted: Sequence[bool]
    ) -> Gradients:
        problem = self.as_kept(problem)
        if problem.keep == "bits":
            return super().backward(problem, grad, kept, tensors, wanted)
        input, weight = tensors[:2]
        if library.is_only_shifted(problem):
            return library.gradients_where_only_shifted(problem, grad, input, weight, wanted)
        asked = (wanted[0] or wanted[1], *wanted[2:])
        if library.keeps_result(problem):
            dz, *sums = self.before(problem, grad, kept, *tensors[2:], asked)
        else:
            dz, *sums = self.recompute(problem, grad, tensors, asked)
        return *library.gradients(problem, dz, input, weight, wanted[:2]), *sums
