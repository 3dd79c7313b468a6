"""What a call comes down to once all has been asked that can be asked beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .activations import ACTIVATIONS
from .backends import remembered_choice
from .plans import FACTORS, Plan
from .problems import Problem
from .problems.conv_film import ConvFilm


class Way(NamedTuple):
    """A call of kernels that check what they are given themselves, gamma and beta as their user has them."""

    forward: Callable[..., Tensor]  # of the five tensors, where gradients are not recorded
    plan: Plan  # where they are
    may_be_apart: bool  # whether it is another call for those who want gamma's gradient and not the weight's


def way_of(problem: Problem, tensors: Sequence[Tensor | None]) -> Way | None:
    """The way of calls like that of `tensors`, of which the record is `problem`; None where there is none that is
    shorter than by the front door."""
    shapes = factor_shapes(problem, tensors)
    if shapes is None:
        return None
    kernels = remembered_choice(problem, None)
    forward = kernels.prepared(problem)
    return None if forward is None else Way(forward, Plan(problem, kernels, shapes), film_is_apart(problem))


def factor_shapes(problem: Problem, tensors: Sequence[Tensor | None]) -> dict[int, torch.Size] | None:
    """The shapes of gamma and beta, by their place, where they are others than the record's; None where kernels do not
    read them so."""
    given = {at: tensors[at].shape for at in FACTORS if tensors[at] is not None}  # type: ignore[union-attr]
    others = {at: shape for at, shape in given.items() if shape != problem.tensor_shapes[at]}
    ones = all(_has_ones_beside(shape, problem.tensor_shapes[-1]) for shape in others.values())
    return others if ones else None


def _has_ones_beside(shape: torch.Size, rows: tuple[int, ...]) -> bool:
    """Whether a gamma or beta of that shape is one that compiled kernels read as it is: (N, K, 1, 1), (N, 1, 1, K), or
    either with one row."""
    return (
        len(shape) > 2
        and shape[0] in (1, rows[0])
        and rows[1] in (shape[1], shape[-1])
        and shape[1:].numel() == rows[1]
    )


def film_is_apart(problem: Problem) -> bool:
    """Whether kernels would find dgamma from bits, with the weight's gradient: if that is not wanted, FiLM is a pass of
    its own."""
    if not isinstance(problem, ConvFilm):
        return False
    from_bits = problem.has_gamma and problem.keep == "fast" and problem.device.type == "cpu"
    return from_bits and ACTIVATIONS[problem.activation].one_bit
