"""What the compiled libraries take beside tensors, the same for CPU and CUDA."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ..activations import ACTIVATIONS, FILM_POSITIONS
from ..problem import Problem


@functools.lru_cache(maxsize=4096)
def options_of(problem: Problem) -> tuple[list[int], float, float]:
    """The geometry (a row of stride, dilation, padding before and output size for the height and one for the width,
    then groups and the codes of activation and position), the slope of the activation's lower branch, and
    gamma_offset."""
    rows = list(zip(problem.stride, problem.dilation, problem.padding, problem.out_size, strict=True))
    if problem.spatial_rank == 1:
        rows.insert(0, (1, 1, (0, 0), 1))
    flat = [value for stride, dilation, (before, _), out in rows for value in (stride, dilation, before, out)]
    activation = ACTIVATIONS[problem.activation]
    return (
        [*flat, problem.groups, activation.code, FILM_POSITIONS.index(problem.film_position)],
        activation.lower_slope(problem.negative_slope),
        problem.gamma_offset,
    )


def bits_like(problem: Problem) -> Tensor:
    """The bits of all channels of a position, in whole bytes: (N * positions, ceil(K / 8)); none without an
    activation."""
    positions = 0
    if problem.activation != "none":
        positions = problem.batch
        for size in problem.out_size:
            positions *= size
    return torch.empty(positions, (problem.out_channels + 7) // 8, dtype=torch.uint8, device=problem.device)
