"""What each operator brings to `ops.py`, which serves them all: its record, its tensors and its plain formula. Its
kernels are the backends'."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from . import reference
from .layouts import is_channels_last, writes_channels_last
from .problems import Problem
from .problems import conv_film as conv
from .problems import norm_film as norm

Some = Sequence[Tensor | None]
_Pick = Callable[[Sequence[Any]], tuple[Any, ...]]


def _picker(names: Sequence[str], picked: Sequence[str]) -> _Pick:
    """Of a sequence with something for each of `names`, those for `picked`."""
    places = [names.index(name) for name in picked]
    if len(places) > 1:
        return operator.itemgetter(*places)
    return lambda found: tuple(found[place] for place in places)


@dataclass(frozen=True, eq=False)
class Operator:
    """One fused operator: `y = plain(problem, *tensors)`, differentiable in all of `tensors`."""

    name: str
    tensors: tuple[str, ...]  # names, in order; the first is the input
    required: int  # how many of them, the first ones, are not optional
    saved: tuple[str, ...]  # those that a backward always reads; the others it may be given as copies, or as None
    parameter: str  # the one whose gradient has its own strides: optimisers and those who reduce gradients compare them
    options_schema: str  # the options as the registered operators take them
    options_of: Callable[[Sequence[Any]], tuple[Any, ...]]  # options as problem_of takes them, from those
    writes_channels_last: Callable[[Some], bool]  # whether its output is channels_last, from the tensors' strides
    problem_of: Callable[..., Any]  # (kinds, channels_last, options) -> the record
    plain: Callable[..., Tensor]  # (problem, *tensors) -> y, differentiable to any order

    # Made from the names: which of something for each tensor belongs to those saved and to the others, and both again
    # in order.
    pick_saved: _Pick = field(init=False)
    pick_others: _Pick = field(init=False)
    in_order: _Pick = field(init=False)
    others: tuple[str, ...] = field(init=False)
    parameter_at: int = field(init=False)
    option_names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        others = tuple(name for name in self.tensors if name not in self.saved)
        order = (*self.saved, *others)
        made = {
            "pick_saved": _picker(self.tensors, self.saved),
            "pick_others": _picker(self.tensors, others),
            "in_order": _picker(order, self.tensors),
            "others": others,
            "parameter_at": self.tensors.index(self.parameter),
            "option_names": tuple(option.split()[-1] for option in self.options_schema.split(", ")),
        }
        for name, value in made.items():
            object.__setattr__(self, name, value)

    def packed(self, problem: Problem) -> tuple[Any, ...]:
        """The options of `problem` as the registered operators take them."""
        return tuple(getattr(problem, name) for name in self.option_names)


CONV_FILM = Operator(
    name="conv_film",
    tensors=conv.TENSORS,
    required=conv.REQUIRED,
    saved=("input", "weight", "gamma"),
    parameter="weight",
    options_schema=conv.OPTIONS_SCHEMA,
    options_of=conv.options_of,
    writes_channels_last=lambda tensors: writes_channels_last(*tensors[:2]),  # type: ignore[arg-type]
    problem_of=conv.problem_of,
    plain=lambda problem, *tensors: reference.forward(problem, *tensors),
)
NORM_FILM = Operator(
    name="norm_film",
    tensors=norm.TENSORS,
    required=norm.REQUIRED,
    saved=("input", "weight", "gamma"),
    parameter="weight",
    options_schema=norm.OPTIONS_SCHEMA,
    options_of=tuple,
    writes_channels_last=lambda tensors: is_channels_last(tensors[0]),  # type: ignore[arg-type]
    problem_of=norm.problem_of,
    plain=lambda problem, *tensors: reference.norm.forward(problem, *tensors),
)
OPERATORS: dict[type, Operator] = {conv.ConvFilm: CONV_FILM, norm.NormFilm: NORM_FILM}  # by the class of the record


def operator_of(problem: Problem) -> Operator:
    """The operator that `problem` is a call of."""
    return OPERATORS[type(problem)]
