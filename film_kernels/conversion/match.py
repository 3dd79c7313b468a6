"""`Match`: one place in a graph where FiLM stands, from what the site begins with to its last operation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from .factors import Factor
from .reasons import Reason
from .records import Activation, Affine, Norm, Operation, Root


@dataclass(frozen=True)
class Link:
    """An operation of a chain, with what it scales by and shifts by."""

    operation: Operation
    factors: tuple[Factor, ...] = ()

    def is_film(self, by_parameters: bool) -> bool:
        """Whether it is FiLM, or a part of one; a scale by parameters counts only where `by_parameters` says so."""
        kinds = {factor.kind for factor in self.factors}
        if (
            by_parameters
            and "learnt" in kinds
            and isinstance(self.operation, Affine)
            and self.operation.scale is not None
        ):
            return True
        return not kinds.isdisjoint(("channel", "map", "unknown"))

    @property
    def folds(self) -> bool:
        """Whether it is a scale and a shift that go into the fused call: its own, or a BatchNorm's."""
        return bool(self.factors) or isinstance(self.operation, Norm)


@dataclass(frozen=True)
class Match:
    """What a site begins with, a convolution where there is one, and what follows it up to its FiLM, or up to the
    activation after that.

    One call serves it: of conv_film from the convolution on, or, where a norm stands before FiLM that is not a scale
    and a shift by itself, of norm_film from that `norm` on; then `front` is what stands before it, which stays as it
    is, and the norm itself. `links` are what the call takes in behind convolution or norm, in order, and `call` are
    arguments of norm_film.

    FiLM is a scale or shift that comes with the call of the model. Where there is none, a scale by parameters counts:
    gamma may have been chosen by the name of a task, which the graph does not tell. Behind a norm such a scale is the
    norm's own, and a shift by parameters alone is a bias.

    `film` is the last scale or shift of the FiLM, None where an activation follows the norm and there is none; `reason`
    says why the site cannot be fused, and is None where it can."""

    root: Root
    links: tuple[Link, ...]
    film: fx.Node | None
    reason: Reason | None
    by_parameters: bool = False  # whether a scale by parameters counts
    front: tuple[Link, ...] = ()
    norm: Norm | None = None
    call: Mapping[str, Any] = field(default_factory=dict)

    @property
    def operator(self) -> str:
        """Whose call it is."""
        return "conv_film" if self.norm is None else "norm_film"

    @property
    def order(self) -> tuple[str, ...]:
        """The operations as found; a scale and a shift together, one of them FiLM's, are "film"."""
        names, pairs = ([self.root.name], [(False, False)]) if self.root.name else ([], [])
        for link in (*self.front, *self.links):
            name, film = link.operation.name, link.is_film(self.by_parameters)
            own = not self.by_parameters and any(factor.kind in ("learnt", "fixed") for factor in link.factors)
            together = bool(names) and {names[-1], name} == {"scale", "shift"} and not pairs[-1][1]
            if together and (film or pairs[-1][0]):
                names[-1] = "film"
            elif name:
                names.append(name)
                pairs.append((film, own))
        return tuple(names)

    @property
    def nodes(self) -> list[fx.Node]:
        """Those that one call stands for, from the first to the last."""
        begin = [self.root.node] if self.norm is None else self.norm.nodes
        return [*begin, *(link.operation.node for link in self.links)]

    @property
    def activation(self) -> Activation | None:
        """The first activation that the kernels have, if there is one."""
        return activation_in(self.links)

    @property
    def film_position(self) -> str:
        """Where FiLM stands; where there is no activation, everything is before it. Of a convolution without FiLM, what
        stands in front of the activation takes FiLM's place."""
        if self.film is None and self.norm is None:
            return "pre"
        return film_position(self.links, self.by_parameters)

    @property
    def before(self) -> list[Link]:
        """Scales, shifts and BatchNorms in front of the activation."""
        return [link for link in self.links[: index_of_activation(self.links)] if link.folds]

    @property
    def after(self) -> list[Link]:
        """Scales, shifts and BatchNorms behind the activation."""
        return [link for link in self.links[index_of_activation(self.links) :] if link.folds]


def index_of_activation(links: Sequence[Link]) -> int:
    """Where in `links` the first activation stands that the kernels have; behind all of them without one."""
    for index, link in enumerate(links):
        if isinstance(link.operation, Activation) and link.operation.reason is None:
            return index
    return len(links)


def activation_in(links: Sequence[Link]) -> Activation | None:
    """The first activation in `links` that the kernels have."""
    index = index_of_activation(links)
    found = links[index].operation if index < len(links) else None
    return found if isinstance(found, Activation) else None


def film_position(links: Sequence[Link], by_parameters: bool) -> str:
    """ "pre" where FiLM stands before the activation in `links`, otherwise "post"."""
    before = links[: index_of_activation(links)]
    return "pre" if any(link.is_film(by_parameters) for link in before) else "post"
