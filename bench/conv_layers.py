"""The layers of conv_film whose errors are measured, some for each path through the CPU kernels, and the kinds of draws
that are about a convolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from film_kernels import conv_film, reference

from .draws import KINDS_OF_ANY, WEIGHT, Kind, max_pooled, mean_gradient, of
from .layer import Layer, Some


@dataclass(frozen=True)
class ConvLayer(Layer):
    """Convolution, activation and FiLM."""

    fused = staticmethod(conv_film)
    reference = staticmethod(reference.conv_film)

    weight: tuple[int, ...]  # (K, C/groups, *kernel)
    padding: int | tuple[int, ...] = 0
    stride: int = 1
    groups: int = 1
    activation: str = "relu"
    film_position: str = "post"

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.weight

    @property
    def options(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "groups": self.groups,
            "activation": self.activation,
            "film_position": self.film_position,
        }

    def near_kink(self, tensors: Some) -> Tensor:
        """Where what the activation is taken of is as near to 0 as roundings in its neighbourhood are large: transforms
        of tiles carry them so far."""
        exact = [t.double() for t in tensors if t is not None]
        size = self._before_activation(*(t.abs() for t in exact))
        windows = [9 if length > 8 else 1 for length in size.shape[2:]]
        pool = (F.max_pool1d, F.max_pool2d)[size.dim() - 3]
        size = pool(size, windows, 1, [length // 2 for length in windows])
        return self._before_activation(*exact).abs() <= 2 * torch.finfo(_dtype_of(tensors)).eps * size

    def _before_activation(self, input: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        convolve = (F.conv1d, F.conv2d)[input.dim() - 3]
        z = convolve(input, weight, bias, self.stride, self.padding, 1, self.groups)
        each = (..., *[None] * (z.dim() - 2))
        return z if self.film_position == "post" else gamma[each] * z + beta[each]


def _dtype_of(tensors: Some) -> torch.dtype:
    assert tensors[0] is not None
    return tensors[0].dtype


LAYERS = (
    ConvLayer("planes", (4, 3, 20, 24), (10, 3, 3, 3), 1),
    ConvLayer("planes, stride 2, pre", (2, 3, 33, 32), (16, 3, 5, 5), 2, 2, film_position="pre"),
    ConvLayer("planes of groups", (2, 12, 20, 20), (12, 4, 3, 3), 1, groups=3),
    ConvLayer("1x1", (4, 64, 14, 14), (64, 64, 1, 1), activation="leaky_relu"),
    ConvLayer("1x1 of few channels", (2, 8, 16, 16), (24, 8, 1, 1)),
    ConvLayer("direct, stride 3", (2, 32, 25, 25), (32, 32, 3, 3), 1, 3),
    ConvLayer("direct, groups", (2, 48, 25, 26), (48, 24, 3, 3), 1, 3, groups=2, film_position="pre"),
    ConvLayer("3x3, stride 2", (4, 32, 33, 34), (24, 32, 3, 3), 1, 2),
    ConvLayer("3x3, stride 2, groups", (2, 48, 47, 46), (48, 24, 3, 3), 1, 2, groups=2, film_position="pre"),
    ConvLayer("5x5, stride 2", (2, 33, 33, 26), (40, 33, 5, 5), 2, 2, activation="leaky_relu"),
    ConvLayer("direct, 1d", (2, 32, 200), (32, 32, 13), activation="none"),
    ConvLayer("direct, blocks of input", (2, 450, 6, 6), (24, 450, 1, 1)),
    ConvLayer("3x3 small", (2, 16, 16, 16), (16, 16, 3, 3), 1),
    ConvLayer("3x3 small, linear", (2, 20, 15, 18), (24, 20, 3, 3), 1, activation="none"),
    ConvLayer("3x3 one sample, pre", (1, 32, 20, 20), (32, 32, 3, 3), 1, film_position="pre"),
    ConvLayer("3x3 groups", (2, 32, 18, 20), (32, 16, 3, 3), 1, groups=2),
    ConvLayer("3x3 large", (3, 36, 28, 28), (36, 36, 3, 3), 1),
    ConvLayer("3x3 large, leaky", (2, 40, 24, 36), (32, 40, 3, 3), 1, activation="leaky_relu"),
    ConvLayer("1x3", (2, 64, 100), (64, 64, 3), 1),
    ConvLayer("1x5", (2, 65, 100), (64, 65, 5), 2),
    ConvLayer("3x5", (2, 33, 24, 25), (32, 33, 3, 5), (1, 2)),
    ConvLayer("5x3", (2, 24, 12, 18), (24, 24, 5, 3), (2, 1)),
    ConvLayer("5x5", (2, 24, 16, 16), (24, 24, 5, 5), 2),
    ConvLayer("5x5 of few channels", (2, 12, 16, 16), (12, 12, 5, 5), 2, activation="leaky_relu"),
    ConvLayer("5x5 padded otherwise", (2, 16, 16, 18), (16, 16, 5, 5), 1),
    ConvLayer("7x7", (2, 16, 18, 18), (16, 16, 7, 7), 3),
    ConvLayer("7x7 of few positions", (2, 24, 14, 14), (12, 24, 7, 7), 3),
    ConvLayer("depthwise", (2, 40, 20, 21), (40, 1, 3, 3), 1, groups=40),
    ConvLayer("depthwise, stride 2, pre", (2, 24, 19, 22), (24, 1, 5, 5), 2, 2, groups=24, film_position="pre"),
    ConvLayer("depthwise 7x7, leaky", (2, 32, 14, 14), (32, 1, 7, 7), 3, groups=32, activation="leaky_relu"),
    ConvLayer("depthwise, 1d", (2, 20, 600), (20, 1, 5), 2, groups=20, activation="none"),
    ConvLayer("smooth, planes", (4, 3, 20, 24), (10, 3, 3, 3), 1, activation="silu"),
    ConvLayer("smooth, 1x1, pre", (4, 64, 14, 14), (64, 64, 1, 1), activation="gelu", film_position="pre"),
    ConvLayer("smooth, depthwise", (2, 20, 16, 30), (20, 1, 3, 3), 1, groups=20, activation="gelu"),
    ConvLayer("smooth, direct", (2, 32, 25, 25), (32, 32, 3, 3), 1, 3, activation="mish"),
    ConvLayer("smooth, 5x5, stride 2", (2, 24, 22, 26), (24, 24, 5, 5), 2, 2, activation="gelu"),
    ConvLayer("smooth, 3x3, pre", (2, 32, 20, 20), (32, 32, 3, 3), 1, activation="silu", film_position="pre"),
    ConvLayer("smooth, 3x3", (3, 36, 28, 28), (36, 36, 3, 3), 1, activation="gelu"),
    ConvLayer("smooth, 1x5, pre", (2, 64, 100), (65, 64, 5), 2, activation="tanh", film_position="pre"),
)


def _mean_taken_away(mean: float):
    """The input has a mean, and the bias takes it away: an input that is not normalised, a folded batch norm."""

    def change(layer: Layer, tensors: list[Tensor], generator: torch.Generator) -> None:
        input, weight, bias = tensors[:3]
        input += mean
        bias.mul_(0.3).sub_(mean * weight.flatten(1).sum(1))

    return change


KINDS: dict[str, Kind] = {
    **KINDS_OF_ANY,
    "mean taken away": Kind(_mean_taken_away(30), mean_gradient),
    "mean taken away, noise": Kind(_mean_taken_away(30)),
    "mean taken away, pool": Kind(_mean_taken_away(3), max_pooled(2)),
    "constant weight": Kind(of(WEIGHT, lambda w, g: w.mul_(0.01).add_(1))),
}
