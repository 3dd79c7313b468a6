"""The matcher: from each scale and shift of a graph up to where its site begins, and from there down to its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, fx

from .chain import Chain
from .convolutions import match_of_convolution
from .crossings import CUT
from .factors import Factors
from .films import candidates
from .hazards import name_changed_values
from .match import Match
from .nodes import note_buffers, tensor_of
from .operations import convolution_of
from .reasons import Reason
from .records import Convolution
from .upward import Upward, Way
from .without_convolution import match_of_norm, match_without_convolution


def matches(
    graph: fx.Graph,
    norms: bool = True,
    convolutions: bool = False,
    judge: Callable[[Match, bool], Match] = lambda match, among_others: match,
) -> list[Match]:
    """Every place in `graph` where FiLM stands, fusable or not, in the graph's order: one for each convolution, and one
    for each norm or other beginning without one. With `convolutions`, and every other convolution that is fusable; with
    `norms`, and every other norm with an activation that is. `judge` may have something against a match, which it is
    given with whether it would stand among PyTorch's own convolutions, or among other operations of PyTorch's; the norm
    and activation behind a convolution are then free for a match of their own."""
    note_buffers(graph)
    name_changed_values(graph)
    factors = Factors()
    upward = Upward(graph, factors)
    with_film = _with_film(graph, factors, upward)
    taken = _taken(with_film)
    left = [one for node in graph.nodes if node not in taken and (one := convolution_of(node)) is not None]
    found = [match_of_convolution(one, factors) for one in left] if convolutions else []
    alone = [judge(match, False) for match in found if match is not None and taken.isdisjoint(match.nodes)]
    taken |= _taken(alone)
    norms_left = (norm for norm in (upward.norms() if norms else ()) if taken.isdisjoint(norm.nodes))
    found = [match_of_norm(norm, factors) for norm in norms_left]
    of_norms = [match for match in [*with_film, *found] if match is not None and match.norm is not None]
    films = [judge(match, bool(left) and not convolutions) for match in with_film if match.norm is None]
    ours = sum(match.reason is None for match in (*films, *alone))
    of_norms = [judge(match, not convolutions or ours < len(of_norms)) for match in of_norms]
    return sorted([*films, *alone, *of_norms], key=lambda match: match.root.node)


def _taken(matches: Iterable[Match]) -> set[fx.Node]:
    """The nodes of those that can be fused."""
    return {node for match in matches if match.reason is None for node in match.nodes}


def _with_film(graph: fx.Graph, factors: Factors, upward: Upward) -> list[Match]:
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
    return [*found.values()]


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
