"""What the kernels of norm_film have in common, whatever they are written in: they keep the statistics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..problems.conv_film import ConvFilm
from ..problems.norm_film import NormFilm
from .base import Kernels


class NormFilmKernels(Kernels):
    """`kept` is `problem.statistics_shape`: for each group its mean and variance, in the dtype of sums. The variance is
    the biased one, without eps; "rms" has the mean square instead and "l2" the length, each without a mean."""

    record = NormFilm

    def kept_like(self, problem: NormFilm) -> Tensor:
        """The statistics."""
        return torch.empty(problem.statistics_shape, dtype=problem.accumulates_in, device=problem.device)

    def reads(self, problem: NormFilm, wanted: Sequence[bool]) -> tuple[bool, ...]:
        return read_of_modulation(problem, wanted)


def read_of_modulation(problem: NormFilm | ConvFilm, wanted: Sequence[bool]) -> tuple[bool, bool]:
    """Whether backward reads bias and beta. What the activation was given is made again, from bias and, where FiLM
    stands before it, beta; and dgamma sums what FiLM was given."""
    bent = problem.activation != "none"
    return bent or wanted[3], bent and problem.film_position == "pre"
