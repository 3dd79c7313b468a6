"""The tensors of a row, and what is timed on them: one call, or a training step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .shapes import Row

Call = Callable[[Tensor], Tensor]  # from a layer's input to its output; the layer's other tensors are in it
Step = Callable[[], list[Tensor]]


@dataclass(frozen=True)
class Work:
    """The tensors of a row's layer (Case.shapes), None for what it does not have, and grad, of the output's shape: what
    comes back into the training step."""

    row: Row
    input: Tensor
    weight: nn.Parameter | None
    bias: nn.Parameter | None
    gamma: Tensor | None
    beta: Tensor | None
    grad: Tensor

    @property
    def parameters(self) -> dict[str, Any]:
        """All tensors but the input, by name."""
        return {"weight": self.weight, "bias": self.bias, "gamma": self.gamma, "beta": self.beta}

    @property
    def leaves(self) -> dict[str, Tensor]:
        """The tensors whose gradients a training step computes, by name; the input is the first."""
        return {"input": self.input} | {name: t for name, t in self.parameters.items() if t is not None}

    def cast(self, dtype: torch.dtype | None = None, channels_last: bool = False) -> Work:
        """The same numbers in another dtype or memory format, as leaves of their own."""

        def convert(t: Tensor) -> Tensor:
            wide = channels_last and t.dim() == 4
            return t.detach().to(dtype or t.dtype, memory_format=torch.channels_last if wide else torch.preserve_format)

        def leaf(t: Tensor | None) -> Tensor | None:
            return None if t is None else convert(t).requires_grad_()

        def parameter(t: Tensor | None) -> nn.Parameter | None:
            return None if t is None else nn.Parameter(convert(t))

        return Work(
            replace(self.row, channels_last=channels_last or self.row.channels_last),
            convert(self.input).requires_grad_(), parameter(self.weight), parameter(self.bias), leaf(self.gamma),
            leaf(self.beta), convert(self.grad),
        )  # fmt: skip


@contextlib.contextmanager
def without_search() -> Iterator[None]:
    """cuDNN does not look for its fastest algorithm: for a call that is made once, in float64."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def make(row: Row, device: torch.device, seed: int = 0) -> Work:
    """Random tensors for `row`, in its dtype and memory format, of which the results are of unit size.

    At the kink of relu or leaky_relu a rounding decides which branch is taken, so where the pre-activation is within
    rounding of 0 the incoming gradient is 0: then results can be compared by size alone.
    """
    case, dtype, generator = row.case, row.dtype, torch.Generator(device).manual_seed(seed)

    def normal(size: tuple[int, ...], scale: float = 1.0) -> Tensor:
        return (torch.randn(size, generator=generator, device=device) * scale).to(dtype)

    shapes = case.shapes(row.input_shape(device))
    scales = (1.0, case.weight_scale, 1.0, 1.0, 1.0)
    input, *others = (
        None if shape is None else normal(shape, scale) for shape, scale in zip(shapes, scales, strict=True)
    )
    assert input is not None
    v = case.before_activation(input, *others)
    grad = normal(tuple(v.shape))
    if case.activation in ("relu", "leaky_relu"):
        with without_search():
            exact = case.before_activation(input.double(), *(None if t is None else t.double() for t in others))
        grad[exact.abs() <= max(float(8 * (exact - v).abs().max()), _tf32(v) * float(exact.std()))] = 0
    weight, bias, gamma, beta = others
    parameters = [None if t is None else nn.Parameter(t) for t in (weight, bias)]
    work = Work(row, input, parameters[0], parameters[1], gamma, beta, grad)
    return work.cast(channels_last=row.channels_last)


def _tf32(v: Tensor) -> float:
    """How far off a result of unit size may be where a library is allowed to take products in tf32, but plain PyTorch
    did not."""
    allowed = v.dtype == torch.float32 and v.device.type == "cuda"
    return 1e-2 if allowed and torch.backends.cudnn.conv.fp32_precision == "tf32" else 0.0  # type: ignore[attr-defined]


def forward_step(call: Call, work: Work) -> Step:
    """Inference: [y]."""

    def step() -> list[Tensor]:
        with torch.no_grad():
            return [call(work.input)]

    return step


def training_step(call: Call, work: Work) -> Step:
    """Forward and backward: [y, and the gradients of `work.leaves`]."""
    leaves = list(work.leaves.values())

    def step() -> list[Tensor]:
        y = call(work.input)
        return [y.detach(), *torch.autograd.grad(y, leaves, work.grad)]

    return step


def recorded_step(call: Call, work: Work) -> Step:
    """A call that autograd records, without the backward: [y]."""
    return lambda: [call(work.input)]


# What a call costs, of the row without work.
CALLS: dict[str, Callable[[Call, Work], Step]] = {"call": forward_step, "recorded call": recorded_step}
STEPS: dict[str, Callable[[Call, Work], Step]] = {
    "forward": forward_step,
    "training": training_step,
    **CALLS,
}
