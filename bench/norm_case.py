"""A case of norm_film: a normalisation, FiLM (or none) and an activation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from film_kernels import norm_film, reference
from film_kernels.checks import Kind
from film_kernels.problems.norm_film import OPTIONS, NormFilm, problem_of

from .case import Case, Shapes, in_words

_EPS = 1e-5


def _group(case: NormCase, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.group_norm(x, case.num_groups, weight, bias, _EPS)  # type: ignore[arg-type]


def _instance(case: NormCase, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, None, None, weight, bias, eps=_EPS)


def _batch(case: NormCase, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, weight, bias, True, eps=_EPS)


def _channel(case: NormCase, x: Tensor, weight: None, bias: None) -> Tensor:
    return F.layer_norm(x, (case.channels,), eps=_EPS)


def _rms(case: NormCase, x: Tensor, weight: Tensor, bias: None) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + _EPS) * _each(weight, x)


def _l2(case: NormCase, x: Tensor, weight: Tensor, bias: None) -> Tensor:
    return F.normalize(x, dim=1) * _each(weight, x)  # the square root of C in front of it is in the weight


def _each(weight: Tensor, x: Tensor) -> Tensor:
    return weight.view(-1, *(1,) * (x.dim() - 2))


class _Norm(NamedTuple):
    """How people write a norm, what norm_film calls it, and which part of an affine its layers have."""

    plain: Callable[..., Tensor]
    name: str
    weight: bool = True
    bias: bool = True
    eps: float = _EPS


_NORMS = {
    "group": _Norm(_group, "group"),
    "instance": _Norm(_instance, "group"),
    "batch": _Norm(_batch, "batch"),
    "channel": _Norm(_channel, "channel", weight=False, bias=False),  # FiLM takes the affine's place
    "rms": _Norm(_rms, "rms", bias=False),
    "l2": _Norm(_l2, "l2", bias=False, eps=1e-12),
}
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda v: v, "relu": torch.relu, "silu": F.silu, "mish": F.mish, "gelu": F.gelu,
}  # fmt: skip


@dataclass(frozen=True)
class NormCase(Case):
    """FiLM is (1 + gamma) * x + beta in front of the activation, gamma * x + beta behind it."""

    operator = "norm_film"

    norm: str  # of _NORMS
    num_groups: int | None = None  # of norm "group"
    film_position: str = "pre"
    film: bool = True

    @property
    def channels(self) -> int:
        """C."""
        return self.input[self.channel_dim]

    @property
    def groups(self) -> int | None:
        """What norm_film calls num_groups."""
        return self.channels if self.norm == "instance" else self.num_groups

    @property
    def weight_scale(self) -> float:
        """What F.normalize makes is as much smaller than the other norms' results."""
        return math.sqrt(self.channels) if self.norm == "l2" else 1.0

    @property
    def fused(self) -> Callable[..., Tensor]:
        return norm_film

    @property
    def reference(self) -> Callable[..., Tensor]:
        return reference.norm_film

    @property
    def options(self) -> dict[str, Any]:
        return {
            "norm": _NORMS[self.norm].name, "num_groups": self.groups, "eps": _NORMS[self.norm].eps,
            "activation": self.activation, "film_position": self.film_position,
            "gamma_offset": 1.0 if self.film and self.film_position == "pre" else 0.0, "channel_dim": self.channel_dim,
        }  # fmt: skip

    def before_activation(self, input: Tensor, weight: Any, bias: Any, gamma: Any, beta: Any) -> Tensor:
        v = _NORMS[self.norm].plain(self, input, weight, bias)
        return v * (1 + gamma) + beta if self.film and self.film_position == "pre" else v

    def plain(self, input: Tensor, weight: Any, bias: Any, gamma: Any, beta: Any) -> Tensor:
        """The norm, a product and a sum, and an activation, or the activation first."""
        y = _ACTIVATIONS[self.activation](self.before_activation(input, weight, bias, gamma, beta))
        return gamma * y + beta if self.film and self.film_position == "post" else y

    def shapes(self, input: tuple[int, ...]) -> Shapes:
        ones, channels, norm = (1,) * (len(input) - 2), input[self.channel_dim], _NORMS[self.norm]
        film = (input[0], channels, *ones) if self.channel_dim == 1 else (input[0], *ones, channels)
        weight, bias = ((channels,) if has else None for has in (norm.weight, norm.bias))
        return Shapes(input, weight, bias, film if self.film else None, film if self.film else None)

    def problem(self, kinds: Sequence[Kind | None], channels_last: bool) -> NormFilm:
        options = {**self.options, "negative_slope": 0.01}
        return problem_of(tuple(kinds), channels_last, [options[name] for name in OPTIONS])  # type: ignore[arg-type]

    def described(self, input: tuple[int, ...]) -> str:
        norm = f"{self.num_groups} groups" if self.norm == "group" else self.norm
        order = [self.activation, "FiLM"] if self.film_position == "post" else ["FiLM", self.activation]
        steps = [step for step in order if step != "none" and (step != "FiLM" or self.film)]
        return f"{in_words(input)}, {', '.join([norm, *steps])}"

    def read_together(self, input: tuple[int, ...], channels_last: bool) -> int:
        """How many elements a cache has to hold so that a group is not read from memory again once its statistics are
        known. In channels_last groups of channels lie side by side at each position, and are read with one another."""
        samples, channels = input[0], self.channels
        positions = math.prod(input) // (samples * channels)
        if self.norm in ("group", "instance"):
            return positions * (channels if channels_last else channels // (self.groups or 1))
        if self.norm == "batch":
            return samples * positions * (channels if channels_last else 1)
        return channels  # of a position
