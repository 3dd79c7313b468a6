"""A case of conv_film: convolution, activation, FiLM after it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from film_kernels import conv_film, reference
from film_kernels.checks import Kind
from film_kernels.problems.conv_film import ConvFilm, problem_of

from .case import Case, Shapes, in_words

_CONV = {3: F.conv1d, 4: F.conv2d}


@dataclass(frozen=True)
class ConvCase(Case):
    """With bias, gamma and beta. relu, or no activation."""

    operator = "conv_film"

    weight: tuple[int, ...]  # (K, C, *kernel)
    padding: int = 0
    stride: int = 1
    dilation: int = 1

    @property
    def fused(self) -> Callable[..., Tensor]:
        return conv_film

    @property
    def reference(self) -> Callable[..., Tensor]:
        return reference.conv_film

    @property
    def options(self) -> dict[str, Any]:
        return {
            "stride": self.stride, "padding": self.padding, "dilation": self.dilation, "activation": self.activation,
        }  # fmt: skip

    @property
    def weight_scale(self) -> float:
        """A sum has so many products."""
        return math.prod(self.weight[1:]) ** -0.5

    def before_activation(self, input: Tensor, weight: Any, bias: Any, gamma: Any, beta: Any) -> Tensor:
        return _CONV[input.dim()](input, weight, bias, self.stride, self.padding, self.dilation)

    def plain(self, input: Tensor, weight: Any, bias: Any, gamma: Any, beta: Any) -> Tensor:
        """A convolution, an activation, a product and a sum."""
        y = self.before_activation(input, weight, bias, gamma, beta)
        return gamma * (torch.relu(y) if self.activation == "relu" else y) + beta

    def shapes(self, input: tuple[int, ...]) -> Shapes:
        channels = self.weight[0]
        film = (input[0], channels, *(1,) * (len(input) - 2))
        return Shapes(input, self.weight, (channels,), film, film)

    def problem(self, kinds: Sequence[Kind | None], channels_last: bool) -> ConvFilm:
        options = (self.stride, self.padding, self.dilation, 1, self.activation, 0.01, "post", 0.0, "fast")
        return problem_of(tuple(kinds), channels_last, options)  # type: ignore[arg-type]

    def described(self, input: tuple[int, ...]) -> str:
        return f"{in_words(input)} -> {in_words(self.weight)}"
