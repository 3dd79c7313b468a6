"""The tensors of a row, and what is timed on them: one call, or a training step."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .shapes import Case, Row

Call = Callable[[Tensor], Tensor]  # from a layer's input to its output; the layer's other tensors are in it
Step = Callable[[], list[Tensor]]

_CONV = {3: F.conv1d, 4: F.conv2d}


@dataclass(frozen=True)
class Work:
    """input (N, C, *in), weight (K, C, *kernel), bias (K,), gamma and beta (N, K, 1, ...), as plain PyTorch needs
    them, and grad (N, K, *out): what comes back into the training step."""

    row: Row
    input: Tensor
    weight: nn.Parameter
    bias: nn.Parameter
    gamma: Tensor
    beta: Tensor
    grad: Tensor

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """The five tensors whose gradients a training step computes."""
        return self.input, self.weight, self.bias, self.gamma, self.beta

    def cast(self, dtype: torch.dtype | None = None, channels_last: bool = False) -> Work:
        """The same numbers in another dtype or memory format, as leaves of their own."""

        def convert(t: Tensor) -> Tensor:
            wide = channels_last and t.dim() == 4
            return t.detach().to(dtype or t.dtype, memory_format=torch.channels_last if wide else torch.preserve_format)

        input, weight, bias, gamma, beta = (convert(t) for t in self.leaves)
        return Work(
            replace(self.row, channels_last=channels_last or self.row.channels_last),
            input.requires_grad_(), nn.Parameter(weight), nn.Parameter(bias), gamma.requires_grad_(),
            beta.requires_grad_(), convert(self.grad),
        )  # fmt: skip


@contextlib.contextmanager
def without_search() -> Iterator[None]:
    """cuDNN does not look for its fastest algorithm: for a call that is made once, in float64."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def plain(case: Case, input: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """What everybody writes: a convolution, an activation, a product and a sum."""
    y = _CONV[input.dim()](input, weight, bias, case.stride, case.padding, case.dilation)
    return gamma * (torch.relu(y) if case.activation == "relu" else y) + beta


def make(row: Row, device: torch.device, seed: int = 0) -> Work:
    """Random tensors of unit size for `row`, in its dtype and memory format.

    At relu's kink a rounding decides which branch is taken, so where the pre-activation is within rounding of 0 the
    incoming gradient is 0: then results can be compared by size alone.
    """
    case, generator = row.case, torch.Generator(device).manual_seed(seed)
    shape, channels = row.input_shape(device), case.weight[0]
    film = (shape[0], channels, *(1,) * (len(shape) - 2))
    products = math.prod(case.weight[1:])

    def normal(size: tuple[int, ...], scale: float = 1.0) -> Tensor:
        return (torch.randn(size, generator=generator, device=device) * scale).to(case.dtype(device))

    input, bias, gamma, beta = normal(shape), normal((channels,)), normal(film), normal(film)
    weight = normal(case.weight, products**-0.5)
    convolve = _CONV[len(shape)]
    z = convolve(input, weight, bias, case.stride, case.padding, case.dilation)
    with without_search():
        exact = convolve(input.double(), weight.double(), bias.double(), case.stride, case.padding, case.dilation)
    grad = normal(tuple(z.shape))
    if case.activation != "none":
        grad[exact.abs() <= 8 * (exact - z).abs().max()] = 0
    work = Work(row, input, nn.Parameter(weight), nn.Parameter(bias), gamma, beta, grad)
    return work.cast(channels_last=row.channels_last)


def forward_step(call: Call, work: Work) -> Step:
    """Inference: [y]."""

    def step() -> list[Tensor]:
        with torch.no_grad():
            return [call(work.input)]

    return step


def training_step(call: Call, work: Work) -> Step:
    """Forward and backward: [y, and the gradients of input, weight, bias, gamma and beta]."""

    def step() -> list[Tensor]:
        y = call(work.input)
        return [y.detach(), *torch.autograd.grad(y, work.leaves, work.grad)]

    return step


def recorded_step(call: Call, work: Work) -> Step:
    """A call that autograd records, without the backward: [y]."""
    return lambda: [call(work.input)]


STEPS: dict[str, Callable[[Call, Work], Step]] = {
    "forward": forward_step,
    "training": training_step,
    "call": forward_step,  # of the row without work: what a call costs
    "recorded call": recorded_step,
}
