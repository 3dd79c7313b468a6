"""What a case of any operator is: a layer, the tensors it has, and the functions that compute it."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from film_kernels.checks import Kind
from film_kernels.problems import Problem

FLOAT32, HALF, BOTH = (False,), (True,), (False, True)  # the precisions of a case's rows


class Shapes(NamedTuple):
    """Of the tensors of a layer, in the order of the operators' arguments; None for what the layer does not have. gamma
    and beta have a 1 for each position, as plain PyTorch needs them."""

    input: tuple[int, ...]
    weight: tuple[int, ...] | None
    bias: tuple[int, ...] | None
    gamma: tuple[int, ...] | None
    beta: tuple[int, ...] | None


@dataclass(frozen=True)
class Case(abc.ABC):
    """One layer. Everything in which the operators differ is a method of the class for that operator."""

    operator: ClassVar[str]  # the name of the package's function

    name: str
    input: tuple[int, ...]  # (N, C, *in), or (N, *in, C) where channel_dim is -1
    _: KW_ONLY
    small: tuple[int, ...]  # the input on the CPU
    activation: str = "relu"
    in_half: tuple[bool, ...] = FLOAT32  # FLOAT32, HALF or BOTH
    both_layouts: bool = False  # whether its users meet channels_last too: networks on pictures do
    channel_dim: int = 1

    @property
    def weight_scale(self) -> float:
        """Of random weights, so that results are of unit size."""
        return 1.0

    @property
    @abc.abstractmethod
    def fused(self) -> Callable[..., Tensor]:
        """The package's function, of the tensors and `options` by name."""

    @property
    @abc.abstractmethod
    def reference(self) -> Callable[..., Tensor]:
        """The same as a formula."""

    @property
    @abc.abstractmethod
    def options(self) -> dict[str, Any]:
        """What both take beside tensors."""

    @abc.abstractmethod
    def plain(self, input: Tensor, weight: Any, bias: Any, gamma: Any, beta: Any) -> Tensor:
        """The layer as everybody writes it. Tensors that it does not have are None."""

    @abc.abstractmethod
    def before_activation(self, input: Tensor, weight: Any, bias: Any, gamma: Any, beta: Any) -> Tensor:
        """What `plain` takes the activation of."""

    @abc.abstractmethod
    def shapes(self, input: tuple[int, ...]) -> Shapes:
        """Of all tensors, for an input of that shape."""

    @abc.abstractmethod
    def problem(self, kinds: Sequence[Kind | None], channels_last: bool) -> Problem:
        """The record of a call with tensors of these kinds."""

    @abc.abstractmethod
    def described(self, input: tuple[int, ...]) -> str:
        """A few words for tables: sizes, and options that matter."""


def in_words(shape: Sequence[int]) -> str:
    """4x192x64x64."""
    return "x".join(map(str, shape))
