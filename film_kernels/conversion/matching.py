"""The matcher: from each scale and shift of a graph up to where its site begins, and from there down to its end."""

from __future__ import annotations

from torch import Tensor, fx

from .chain import Chain
from .crossings import CUT
from .factors import Factors
from .films import candidates
from .hazards import name_changed_values
from .match import Match
from .nodes import note_buffers, tensor_of
from .reasons import Reason
from .records import Convolution
from .upward import Upward, Way
from .without_convolution import match_of_norm, match_without_convolution


def matches(graph: fx.Graph, norms: bool = True) -> list[Match]:
    """Every place in `graph` where FiLM stands, fusable or not, in the graph's order: one for each convolution, and one
    for each norm or other beginning without one. With `norms`, and every other norm with an activation that is
    fusable."""
    note_buffers(graph)
    name_changed_values(graph)
    factors = Factors()
    upward = Upward(graph, factors)
    ways: dict[fx.Node, tuple[list[Way], list[Way]]] = {}  # by the convolution: to FiLM, to scales by parameters
    others: list[Match] = []
    for candidate in candidates(graph, factors):
        for way in upward.ways(candidate.source, candidate.operation):
            if way.convolution is None and not candidate.by_parameters:
                match = match_without_convolution(way, candidate.channels, factors, upward)
                others += [] if match is None else [match]
            elif way.convolution is not None and candidate.channels == 1:
                ways.setdefault(way.top, ([], []))[candidate.by_parameters].append(way)
    found: dict[fx.Node, Match] = {}
    for node, (to_film, to_parameters) in ways.items():
        match = _first(to_film, factors, False) or _first(to_parameters, factors, True)
        if match is not None:
            found[node] = match
    taken = {node for match in found.values() for node in match.nodes}
    for match in others:
        if taken.isdisjoint(match.nodes):
            found.setdefault(match.root.node, match)
    all_of_them = [*found.values()]
    taken = {node for match in all_of_them if match.reason is None for node in match.nodes}
    for norm in upward.norms() if norms else ():
        match = match_of_norm(norm, factors) if taken.isdisjoint(norm.nodes) else None
        all_of_them += [] if match is None else [match]
    return sorted(all_of_them, key=lambda match: match.root.node)


def _first(ways: list[Way], factors: Factors, by_parameters: bool) -> Match | None:
    """The match that the first of `ways`, all of them from one convolution, leads to, if any does."""
    for way in sorted(ways, key=lambda way: way.place):
        assert way.convolution is not None
        match = _along(way, way.convolution, factors, by_parameters)
        if match is not None:
            return match
    return None


def _along(way: Way, convolution: Convolution, factors: Factors, by_parameters: bool) -> Match | None:
    result = tensor_of(convolution.node)
    if result is not None and result.dim() != convolution.rank + 2:
        return None  # an input without a batch: there are no samples to modulate
    reasons = _why_not(convolution, result)
    chain = Chain(convolution, convolution.rank, factors, reasons, by_parameters=by_parameters)
    for operation in way.earlier:
        chain.take(operation)
    chain.follow(way.operations)
    return chain.match()


def _why_not(convolution: Convolution, result: Tensor | None) -> list[Reason]:
    reasons = [CUT] if convolution.cut else []
    if convolution.transposed:
        reasons.append(Reason("transposed convolutions have no kernel"))
    elif convolution.rank == 3:
        reasons.append(Reason("3d convolutions have no fused kernel, so nothing would be gained"))
    elif result is not None and not result.dtype.is_floating_point:
        reasons.append(Reason(f"{result.dtype} has no fused kernel"))
    return reasons
