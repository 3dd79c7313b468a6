"""The matcher: from each scale and shift of a graph up to where its site begins, and from there down to its end."""

from __future__ import annotations

from torch import fx

from .downward import match_along
from .factors import Factors
from .films import candidates
from .hazards import name_changed_values
from .match import Match
from .nodes import note_buffers
from .upward import Upward, Way


def matches(graph: fx.Graph) -> list[Match]:
    """Every place in `graph` where a convolution's output meets FiLM, fusable or not, in the graph's order: one for
    each convolution."""
    note_buffers(graph)
    name_changed_values(graph)
    factors = Factors()
    upward = Upward(graph, factors)
    ways: dict[fx.Node, tuple[list[Way], list[Way]]] = {}  # by the convolution: to FiLM, to scales by parameters
    for candidate in candidates(graph, factors):
        for way in upward.ways(candidate.source, candidate.operation):
            if way.convolution is not None:
                ways.setdefault(way.top, ([], []))[candidate.by_parameters].append(way)
    found = (_match_of(*ways[node], factors) for node in sorted(ways))
    return [match for match in found if match is not None]


def _match_of(to_film: list[Way], to_parameters: list[Way], factors: Factors) -> Match | None:
    """The first FiLM of a convolution; a scale by parameters where there is no other."""
    for ways, by_parameters in ((to_film, False), (to_parameters, True)):
        for way in sorted(ways, key=lambda way: way.place):
            assert way.convolution is not None
            match = match_along(way, way.convolution, factors, by_parameters)
            if match is not None:
                return match
    return None
