"""The layers that `bench.smoke` tries: small ones, that meet every family of kernels and every shape of tile."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from film_kernels.checks import Kind
from film_kernels.problems.conv_film import KEEPS, ConvFilm

from .conv_case import ConvCase
from .norm_case import NormCase
from .shapes import Row

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda v: v,
    "relu": torch.relu,
    "leaky_relu": partial(F.leaky_relu, negative_slope=0.01),
    "silu": F.silu,
    "gelu": F.gelu,
}


@dataclass(frozen=True)
class _Conv(ConvCase):
    """With every activation, before FiLM or behind it, and a choice of what is kept."""

    film_position: str = "post"
    keep: str = "fast"

    @property
    def options(self) -> dict[str, Any]:
        return {**super().options, "film_position": self.film_position, "keep": self.keep}

    def before_activation(self, input: Tensor, weight: Any, bias: Any, gamma: Any, beta: Any) -> Tensor:
        z = super().before_activation(input, weight, bias, gamma, beta)
        return z if self.film_position == "post" else gamma * z + beta

    def plain(self, input: Tensor, weight: Any, bias: Any, gamma: Any, beta: Any) -> Tensor:
        y = _ACTIVATIONS[self.activation](self.before_activation(input, weight, bias, gamma, beta))
        return gamma * y + beta if self.film_position == "post" else y

    def problem(self, kinds: Sequence[Kind | None], channels_last: bool) -> ConvFilm:
        return super().problem(kinds, channels_last)._replace(film_position=self.film_position, keep=self.keep)


def _conv(name: str, input: tuple[int, ...], weight: tuple[int, ...], *geometry: int) -> _Conv:
    stride, padding, dilation = geometry
    return _Conv(name, input, weight, small=input, stride=stride, padding=padding, dilation=dilation)


_CONVS = (
    _conv("tutorial", (4, 3, 64, 64), (10, 3, 3, 3), 1, 0, 1),
    _conv("stem", (2, 3, 33, 35), (24, 3, 7, 7), 2, 3, 1),
    _conv("small", (2, 24, 9, 7), (72, 24, 3, 3), 1, 1, 1),
    _conv("CLEVR", (8, 128, 14, 14), (128, 128, 3, 3), 1, 1, 1),
    _conv("middle", (32, 64, 32, 32), (64, 64, 3, 3), 1, 1, 1),
    _conv("large", (16, 128, 48, 48), (136, 128, 3, 3), 1, 1, 1),
    _conv("strided", (2, 32, 17, 19), (48, 32, 3, 3), 2, 1, 1),
    _conv("dilated", (2, 32, 15, 16), (40, 32, 3, 3), 1, 2, 2),
    _conv("pointwise", (6, 256, 10, 10), (512, 256, 1, 1), 1, 0, 1),
    _conv("whole input", (9, 24, 4, 4), (16, 24, 4, 4), 1, 0, 1),
)
_FORMULAS = (("relu", "post"), ("silu", "pre"), ("leaky_relu", "pre"), ("gelu", "post"), ("none", "post"))


def _norm(name: str, input: tuple[int, ...], norm: str, **options: Any) -> NormCase:
    return NormCase(name, input, norm, small=input, **options)


_NORMS = (
    _norm("group in registers", (4, 128, 8, 8), "group", num_groups=32, activation="silu"),
    _norm("group in shared memory", (2, 64, 48, 48), "group", num_groups=8, activation="silu"),
    _norm("few long groups", (1, 32, 160, 160), "group", num_groups=1, activation="relu"),
    _norm("instance", (3, 24, 33, 31), "instance", activation="relu"),
    _norm("batch", (8, 48, 14, 14), "batch", activation="relu"),
    _norm("RMSNorm", (2, 96, 17, 16), "rms", activation="silu"),
    _norm("F.normalize", (2, 64, 9, 8), "l2", activation="silu"),
    _norm("tokens", (4, 65, 384), "channel", activation="none", channel_dim=-1),
    _norm("rows", (8, 64, 50), "group", num_groups=8, activation="mish", film_position="post"),
    _norm("without FiLM", (4, 64, 16, 16), "group", num_groups=32, activation="gelu", film=False),
)
_DTYPES = ((True, False), (False, False), (True, True))  # bfloat16, float32, float16


def rows() -> Iterator[Row]:
    """All that is tried, the most usual first."""
    for at, (activation, position) in enumerate(_FORMULAS):
        for (half, float16), last in itertools.product(_DTYPES, (True, False)):
            for number, case in enumerate(_CONVS):
                keep = KEEPS[(at + number) % len(KEEPS)] if half else None
                for one in KEEPS if at == 0 and keep is None else (keep or KEEPS[number % len(KEEPS)],):
                    changed = replace(case, activation=activation, film_position=position, keep=one)
                    yield Row(changed, channels_last=last, half=half, float16=float16)
            for norm in _NORMS if at == 0 else ():
                if not last or (len(norm.input) == 4 and norm.channel_dim == 1):
                    yield Row(norm, channels_last=last, half=half, float16=float16)
