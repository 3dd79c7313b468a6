"""What the compiled libraries take beside tensors, the same for CPU and CUDA: csrc/checks.h reads what is written here,
in the same order, and csrc/norm_tensors.h for norm_film."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..activations import ACTIVATIONS, CODES, FILM_POSITIONS
from ..identity import by_identity
from ..problems.conv_film import ConvFilm
from ..problems.norm_film import NO_NORM, NORMS, NormFilm


class Axis(NamedTuple):
    """One spatial dimension of a convolution."""

    stride: int = 1
    dilation: int = 1
    padding: int = 0  # before it
    out: int = 1


class Geometry(NamedTuple):
    """The integers of a call; a 1d convolution has a height of 1. `activation` and `position` are codes."""

    height: Axis
    width: Axis
    groups: int
    activation: int
    position: int

    def packed(self) -> list[int]:
        """As the operators take it."""
        return [*self.height, *self.width, self.groups, self.activation, self.position]

    @classmethod
    def read(cls, packed: Sequence[int]) -> Geometry:
        """From what `packed` gave. Raises RuntimeError, as the libraries do, where it is of another length."""
        if len(packed) != 11:
            raise RuntimeError(f"film_kernels: geometry must hold 11 integers, got {len(packed)}")
        return cls(Axis(*packed[:4]), Axis(*packed[4:8]), *packed[8:])


def lower_slope(problem: ConvFilm | NormFilm) -> float:
    """The slope of the activation's lower branch; of a smooth one, which has none, 0."""
    activation = ACTIVATIONS[problem.activation]
    return activation.lower_slope(problem.negative_slope) if activation.one_bit else 0.0


@by_identity
def packed_options(problem: ConvFilm) -> tuple[list[int], list[float]]:
    """The integers, and the numbers: the slope of the activation's lower branch, and gamma_offset."""
    axes = map(Axis, problem.stride, problem.dilation, problem.padding_before, problem.out_size)
    height, width = axes if problem.spatial_rank == 2 else (Axis(), *axes)
    geometry = Geometry(
        height, width, problem.groups, CODES[problem.activation], FILM_POSITIONS.index(problem.film_position)
    )
    return geometry.packed(), [lower_slope(problem), problem.gamma_offset]


@by_identity
def options_tensor(problem: ConvFilm | NormFilm) -> Tensor:
    """The options of a CPU operator that takes them in one tensor (csrc/packed_options.h): the integers, the bits of
    the numbers, and whether the output is channels_last."""
    geometry, numbers = packed_options(problem) if isinstance(problem, ConvFilm) else packed_norm_options(problem)
    with torch.inference_mode(False):
        bits = torch.tensor(numbers, dtype=torch.float64, device="cpu").view(torch.int64)
        return torch.tensor([*geometry, *bits.tolist(), problem.channels_last], dtype=torch.int64, device="cpu")


class NormGeometry(NamedTuple):
    """The integers of a call of norm_film; `norm`, `activation` and `position` are codes."""

    norm: int
    groups: int
    channel_dim: int
    activation: int
    position: int


_CODES_OF_NORMS = {name: code for code, name in enumerate((*NORMS, NO_NORM))}


@by_identity
def packed_norm_options(problem: NormFilm) -> tuple[list[int], list[float]]:
    """The integers, and the numbers: eps, the slope of the activation's lower branch, and gamma_offset."""
    geometry = NormGeometry(
        _CODES_OF_NORMS[problem.norm],
        problem.num_groups or 0,
        problem.channel_dim,
        CODES[problem.activation],
        FILM_POSITIONS.index(problem.film_position),
    )
    return [*geometry], [problem.eps, lower_slope(problem), problem.gamma_offset]


@by_identity
def packed_pass_options(problem: ConvFilm) -> tuple[list[int], list[float]]:
    """The same for activation and FiLM of what the convolution of `problem` gives: of a norm_film that normalises
    nothing."""
    geometry = NormGeometry(
        _CODES_OF_NORMS[NO_NORM],
        groups=0,
        channel_dim=1,
        activation=CODES[problem.activation],
        position=FILM_POSITIONS.index(problem.film_position),
    )
    return [*geometry], [0.0, lower_slope(problem), problem.gamma_offset]
