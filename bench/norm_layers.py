"""The layers of norm_film whose errors are measured, some for each path through the CPU kernels, and the kinds of draws
that are about a normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from film_kernels import norm_film, reference

from .draws import BIAS, GAMMA, INPUT, KINDS_OF_ANY, Kind, mean_gradient, of
from .layer import TENSORS, Layer, Some


@dataclass(frozen=True)
class NormLayer(Layer):
    """Normalisation, FiLM and activation. The positions of a channel lie side by side in memory, or with `pixels` the
    channels of a position: then the tensor is channels_last where PyTorch knows such a format, and otherwise one whose
    channels come last."""

    fused = staticmethod(norm_film)
    reference = staticmethod(reference.norm_film)

    norm: str
    num_groups: int | None = None
    activation: str = "silu"
    film_position: str = "pre"
    pixels: bool = False
    gamma_offset: float = 0.0
    without: tuple[str, ...] = ()

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.input[1:2]

    @property
    def weight_scale(self) -> float:
        return math.sqrt(self.input[1]) if self.norm == "l2" else 1.0

    @property
    def options(self) -> dict[str, Any]:
        return {
            "norm": self.norm, "num_groups": self.num_groups, "activation": self.activation,
            "film_position": self.film_position, "gamma_offset": self.gamma_offset,
            "channel_dim": -1 if self._channels_come_last else 1,
        }  # fmt: skip

    @property
    def _channels_come_last(self) -> bool:
        return self.pixels and len(self.input) not in (4, 5)

    def given(self, tensors: Sequence[Tensor]) -> list[Tensor | None]:
        named = zip(TENSORS, super().given(tensors), strict=True)
        return [None if name in self.without else tensor for name, tensor in named]

    def arranged(self, tensor: Tensor) -> Tensor:
        if not self.pixels:
            return tensor
        last = tensor.movedim(1, -1).contiguous()
        return last if self._channels_come_last else last.movedim(-1, 1)

    def planes(self, tensor: Tensor) -> Tensor:
        return tensor.movedim(-1, 1) if self._channels_come_last else tensor

    def near_kink(self, tensors: Some) -> Tensor:
        """Where what the activation is taken of is as near to 0 as plain PyTorch is off anywhere in the sample."""
        v = self._before_activation([None if t is None else t.double() for t in tensors])
        if self.activation not in ("relu", "leaky_relu"):
            return torch.zeros_like(v, dtype=torch.bool)
        off = (self._before_activation(tensors).double() - v).abs()
        return v.abs() <= 4 * off.amax(tuple(range(1, off.dim())), keepdim=True)

    def _before_activation(self, tensors: Some) -> Tensor:
        call = {**self._named(tensors), **self.options, "activation": "none"}
        if self.film_position == "post":
            call |= {"gamma": None, "beta": None, "gamma_offset": 0.0}
        return self.reference(**call)


LAYERS = (
    # statistics of groups of planes: norm_planes.cpp
    NormLayer("group, planes", (2, 12, 20, 24), "group", 3),
    NormLayer("group, planes, post", (2, 12, 17, 19), "group", 4, "mish", "post"),
    NormLayer("group, planes, relu", (3, 12, 13, 12), "group", 2, "relu", gamma_offset=1.0),
    NormLayer("group, planes, leaky, post", (2, 8, 14, 15), "group", 4, "leaky_relu", "post"),
    NormLayer("group, parts of rows", (1, 3, 5000), "group", 1, "gelu"),
    NormLayer("group, rows of 3", (3, 64, 3), "group", 8, "tanh"),
    NormLayer("group, too large to keep", (1, 9, 122, 121), "group", 1),
    NormLayer("group, 3d, no affine", (2, 6, 5, 6, 7), "group", 2, without=("weight", "bias")),
    NormLayer("instance, planes", (2, 5, 18, 17), "group", 5),
    NormLayer("instance, planes, no FiLM", (2, 5, 18, 17), "group", 5, "gelu_tanh", without=("gamma", "beta")),
    NormLayer("batch, planes", (4, 6, 11, 13), "batch", None, "relu"),
    NormLayer("batch, planes, post", (4, 6, 11, 13), "batch", None, "sigmoid", "post"),
    NormLayer("batch, rows of 2", (40, 6, 2), "batch"),
    NormLayer("none, planes", (2, 6, 15, 17), "none"),
    NormLayer("none, planes, post", (2, 6, 15, 17), "none", None, "relu", "post"),
    # the same where channels lie side by side: norm_pixels.cpp
    NormLayer("group, pixels", (2, 12, 20, 24), "group", 3, pixels=True),
    NormLayer("group, pixels, post", (2, 24, 12, 13), "group", 3, "mish", "post", pixels=True),
    NormLayer("group, pixels, relu", (2, 33, 9, 10), "group", 11, "relu", pixels=True, gamma_offset=1.0),
    NormLayer("group, pixels, many channels", (1, 640, 5, 5), "group", 1, "gelu", pixels=True),
    NormLayer("instance, pixels", (2, 20, 18, 17), "group", 20, "leaky_relu", pixels=True),
    NormLayer("batch, pixels", (4, 20, 11, 13), "batch", None, "relu", pixels=True),
    NormLayer("batch, pixels, post", (4, 6, 11, 13), "batch", None, "silu", "post", pixels=True),
    NormLayer("none, pixels", (2, 20, 15, 17), "none", None, "gelu", pixels=True),
    # statistics of positions, which lie side by side: norm_across_planes.cpp
    NormLayer("channel, planes", (2, 24, 17, 19), "channel", gamma_offset=1.0),
    NormLayer("channel, planes, many", (1, 700, 5, 7), "channel", None, "relu", "post"),
    NormLayer("rms, planes", (2, 24, 17, 19), "rms", without=("bias",)),
    NormLayer("rms, planes, post", (2, 10, 9, 11), "rms", None, "leaky_relu", "post"),
    NormLayer("l2, planes", (2, 24, 17, 19), "l2", without=("bias",)),
    NormLayer("l2, planes, post", (2, 10, 9, 11), "l2", None, "mish", "post"),
    # and channels that do: norm_across_pixels.cpp
    NormLayer("channel, pixels", (2, 24, 17, 19), "channel", None, "gelu_tanh", pixels=True),
    NormLayer("channel, tokens", (2, 96, 50), "channel", None, "none", pixels=True, gamma_offset=1.0,
              without=("weight", "bias")),
    NormLayer("channel, few channels", (2, 3, 120), "channel", None, "silu", "post", pixels=True),
    NormLayer("rms, tokens", (2, 130, 40), "rms", None, "silu", pixels=True),
    NormLayer("rms, pixels, post", (2, 17, 9, 11), "rms", None, "relu", "post", pixels=True),
    NormLayer("l2, tokens", (2, 65, 60), "l2", pixels=True),
    NormLayer("l2, pixels, post", (2, 17, 9, 11), "l2", None, "tanh", "post", pixels=True),
)  # fmt: skip


def _mean_taken_away(layer: Layer, tensors: list[Tensor], generator: torch.Generator) -> None:
    """Channels are far from their neighbours, and the bias brings each back to 0."""
    x, weight, bias = tensors[:3]
    x += 30 * (torch.arange(x.shape[1]) % 3 - 1).view(-1, *(1,) * (x.dim() - 2))
    ones, zeros = torch.ones_like(weight), torch.zeros_like(bias)
    options = {**layer.options, "activation": "none", "film_position": "pre", "gamma_offset": 0.0}
    xhat = layer.planes(layer.reference(layer.arranged(x), weight=ones, bias=zeros, **options))
    bias.copy_(-weight * xhat.mean((0, *range(2, x.dim()))))


def _one_value(x: Tensor, generator: torch.Generator) -> None:
    """In each map another."""
    x.copy_(x.flatten(2)[:, :, :1].clone().view(*x.shape[:2], *(1,) * (x.dim() - 2)).expand_as(x))


KINDS: dict[str, Kind] = {
    **KINDS_OF_ANY,
    "mean of 10000": Kind(of(INPUT, lambda x, g: x.add_(1e4))),
    "mean of 10000, constant": Kind(of(INPUT, lambda x, g: x.mul_(1e-2).add_(1e4)), mean_gradient),
    "constant": Kind(of(INPUT, lambda x, g: x.fill_(0.1))),
    "constant maps": Kind(of(INPUT, _one_value)),
    "nearly constant": Kind(of(INPUT, lambda x, g: x.mul_(1e-4).add_(1))),
    "short input": Kind(of(INPUT, lambda x, g: x.mul_(1e-3))),
    "long input": Kind(of(INPUT, lambda x, g: x.mul_(1e4))),
    "mean taken away": Kind(_mean_taken_away, mean_gradient),
    "mean taken away, noise": Kind(_mean_taken_away),
    "gamma of -1": Kind(of(GAMMA, lambda f, g: f.mul_(0.01).sub_(1))),
    "large bias": Kind(of(BIAS, lambda b, g: b.mul_(100)), mean_gradient),
}
