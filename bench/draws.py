"""Kinds of tensors on which errors are measured: what layers meet beside dense normal noise.

Summation is judged on noise first, and noise hides much: it has no zeros, no mean that something else takes away, and
no number that is larger than all others together. A kind is drawn for any layer of its operator, from a generator, in
float64. Those here are of every operator; each has more of its own beside its layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .layer import Layer

Change = Callable[[Layer, list[Tensor], torch.Generator], None]
Gradient = Callable[[Tensor, torch.Generator], Tensor]


def _unchanged(layer: Layer, tensors: list[Tensor], generator: torch.Generator) -> None:
    pass


def _noise(output: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(output.shape, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class Kind:
    """Changes normal tensors (input, weight, bias, gamma, beta) in place, and makes a gradient for an output."""

    change: Change = _unchanged
    gradient: Gradient = _noise
    rare: bool = False  # whether a few elements have nearly all of the error, so that one draw says little


def _one_in(count: int) -> Gradient:
    """Most elements are 0, as behind a mask or a loss of few positions."""

    def gradient(output: Tensor, generator: torch.Generator) -> Tensor:
        kept = torch.rand(output.shape, generator=generator, dtype=torch.float64) < 1 / count
        return _noise(output, generator) * kept

    return gradient


def max_pooled(size: int) -> Gradient:
    """What max pooling behind the layer hands back: one element of each window."""

    def gradient(output: Tensor, generator: torch.Generator) -> Tensor:
        windows = tuple(min(size, length) for length in output.shape[2:])
        pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[output.dim() - 3]
        leaf = output.detach().requires_grad_()
        pooled = pool(leaf, windows)
        return torch.autograd.grad(pooled, leaf, _noise(pooled, generator))[0]

    return gradient


def mean_gradient(output: Tensor, generator: torch.Generator) -> Tensor:
    """As average pooling behind the layer hands back."""
    return 1 + 0.1 * _noise(output, generator)


def _long_tail(like: Tensor, generator: torch.Generator) -> Tensor:
    """Factors of which a few are a hundred times as large as most."""
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).mul(1.5).exp()


def _heavy_gradient(output: Tensor, generator: torch.Generator) -> Tensor:
    return _noise(output, generator) * _long_tail(output, generator)


def _gradient_outlier(output: Tensor, generator: torch.Generator) -> Tensor:
    """In each map, so that there are as many as there are factors."""
    grad = _noise(output, generator)
    maps = grad.flatten(0, 1).flatten(1)
    at = torch.randint(maps.shape[1], (maps.shape[0], 1), generator=generator)
    return maps.scatter(1, at, 1e4).view_as(grad)


def _gradient_scales(output: Tensor, generator: torch.Generator) -> Tensor:
    return _noise(output, generator) * _scales(output, 1)


def _spoil(t: Tensor, generator: torch.Generator) -> None:
    """Makes one element larger than all others together."""
    at = int(torch.randint(t.numel(), (), generator=generator))
    t.view(-1)[at] = 1e4


def _scales(t: Tensor, dim: int) -> Tensor:
    """From 1/100 to 100 along `dim`."""
    sizes = [-1 if d == dim else 1 for d in range(t.dim())]
    return torch.logspace(-2, 2, t.shape[dim], dtype=torch.float64).view(sizes)


def of(place: int, act: Callable[[Tensor, torch.Generator], object]) -> Change:
    """A change of one tensor."""

    def change(layer: Layer, tensors: list[Tensor], generator: torch.Generator) -> None:
        act(tensors[place], generator)

    return change


INPUT, WEIGHT, BIAS, GAMMA = range(4)

KINDS_OF_ANY: dict[str, Kind] = {
    "normal": Kind(),
    "gradient 1 in 4": Kind(gradient=_one_in(4)),
    "gradient 1 in 16": Kind(gradient=_one_in(16)),
    "max pool 2": Kind(gradient=max_pooled(2)),
    "max pool 4": Kind(gradient=max_pooled(4)),
    "max pool 8": Kind(gradient=max_pooled(8)),
    "mean of gradient": Kind(gradient=mean_gradient),
    "heavy gradient": Kind(gradient=_heavy_gradient, rare=True),
    "gradient outlier": Kind(gradient=_gradient_outlier),
    "gradient scales": Kind(gradient=_gradient_scales, rare=True),
    "mean of input": Kind(of(INPUT, lambda x, g: x.add_(3))),
    "image": Kind(of(INPUT, lambda x, g: x.uniform_(0, 255, generator=g).floor_())),
    "sparse input": Kind(of(INPUT, lambda x, g: x.mul_(torch.rand(x.shape, generator=g, dtype=x.dtype) < 1 / 16))),
    "heavy input": Kind(of(INPUT, lambda x, g: x.mul_(_long_tail(x, g)))),
    "input outlier": Kind(of(INPUT, _spoil), rare=True),
    "input scales": Kind(of(INPUT, lambda x, g: x.mul_(_scales(x, 1)))),
    "one channel": Kind(of(INPUT, lambda x, g: x[:, -1].mul_(1e3))),
    "heavy weight": Kind(of(WEIGHT, lambda w, g: w.mul_(_long_tail(w, g)))),
    "weight scales": Kind(of(WEIGHT, lambda w, g: w.mul_(_scales(w, 0))), rare=True),
    "small gamma": Kind(of(GAMMA, lambda f, g: f.mul_(0.01)), mean_gradient),
}


def draw(kind: Kind, layer: Layer, generator: torch.Generator) -> list[Tensor]:
    """(input, weight, bias, gamma, beta) in float64, channels in second place; weights such that results are of the
    input's size."""
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in layer.shapes]
    tensors[WEIGHT] *= layer.weight_scale
    kind.change(layer, tensors, generator)
    return tensors
