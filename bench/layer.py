"""What a layer is whose errors are measured: small enough to be tried often, and named after the path it takes."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

TENSORS = ("input", "weight", "bias", "gamma", "beta")
Some = Sequence[Tensor | None]


@dataclass(frozen=True)
class Layer(abc.ABC):
    """Everything in which the operators differ is a method of the class for that operator. Tensors are drawn with their
    channels in second place."""

    fused: ClassVar[Callable[..., Tensor]]  # the package's function, of TENSORS and `options` by name
    reference: ClassVar[Callable[..., Tensor]]  # the same as a formula: plain PyTorch

    name: str
    input: tuple[int, ...]  # (N, C, *in)

    @property
    @abc.abstractmethod
    def weight_shape(self) -> tuple[int, ...]:
        """Channels of the output first."""

    @property
    @abc.abstractmethod
    def options(self) -> dict[str, Any]:
        """What the functions take beside tensors."""

    @abc.abstractmethod
    def near_kink(self, tensors: Some) -> Tensor:
        """Where a rounding in the tensors' dtype may decide which side of the activation's kink an output is on."""

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of TENSORS, also of those that the layer does without."""
        rows = (self.input[0], self.weight_shape[0])
        return self.input, self.weight_shape, rows[1:], rows, rows

    @property
    def weight_scale(self) -> float:
        """Of random weights, so that results are of the input's size: a sum has so many products."""
        return 1 / math.sqrt(math.prod(self.weight_shape[1:]))

    def given(self, tensors: Sequence[Tensor]) -> list[Tensor | None]:
        """TENSORS as the operator gets them: None for those that the layer does without."""
        return [self.arranged(tensors[0]), *tensors[1:]]

    def arranged(self, tensor: Tensor) -> Tensor:
        """An input, or a gradient of its shape, as it lies in memory."""
        return tensor

    def planes(self, tensor: Tensor) -> Tensor:
        """An output with its channels in second place again."""
        return tensor

    def ours(self, tensors: Some, backend: str) -> Tensor:
        """The output of one of the package's backends."""
        return self.fused(**self._named(tensors), **self.options, backend=backend)

    def plain(self, tensors: Some) -> Tensor:
        """That of plain PyTorch."""
        return self.reference(**self._named(tensors), **self.options)

    @staticmethod
    def _named(tensors: Some) -> dict[str, Tensor | None]:
        return dict(zip(TENSORS, tensors, strict=True))
