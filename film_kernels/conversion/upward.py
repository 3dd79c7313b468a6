"""From a scale or shift up the graph, through what a chain may hold, to what the site begins with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from .crossings import crossing_of
from .factors import Factors
from .films import keeps_shape, kinds_beside
from .nodes import asks_for_the_shape, first_argument, users_of_values
from .norms import norm_of
from .operations import convolution_of, is_arithmetic, operation_of
from .records import Affine, Convolution, Norm, Operation
from .written_norms import written_norms

_OF_ALL_SAMPLES = {"learnt", "fixed", "constant"}


@dataclass(frozen=True)
class Way:
    """`operations` in their order, the first of them of the result of `top`, which is a `convolution`, or nothing that
    a chain may hold. `earlier` are operations in another graph, between the convolution and `top`."""

    top: fx.Node
    operations: tuple[Operation, ...]
    convolution: Convolution | None = None
    earlier: Sequence[Operation] = ()

    @property
    def place(self) -> list[int]:
        """What orders ways from one top: at each node, which of its readers the way goes to."""
        nodes = [self.top, *(operation.node for operation in self.operations)]
        pairs = zip(nodes, self.operations, strict=False)
        return [0 if _is_written(to) else users_of_values(node).index(to.node) for node, to in pairs]


class Upward:
    """The ways up in one graph, each step of which is looked at once."""

    def __init__(self, graph: fx.Graph, factors: Factors) -> None:
        self._factors = factors
        self._norms: dict[fx.Node, list[Norm]] = {}  # written out, by where they end
        for norm in written_norms(graph):
            self._norms.setdefault(norm.node, []).append(norm)
        self._begins_norm = {norm.source for norms in self._norms.values() for norm in norms}
        self._graph = graph
        self._above: dict[fx.Node, list[tuple[fx.Node, Operation]] | None] = {}

    def norms(self) -> list[Norm]:
        """Every norm in the graph that is not a part of another."""
        written = [norm for norms in self._norms.values() for norm in norms]
        inside = {node for norm in written for node in norm.nodes}
        calls = ((node, first_argument(node)) for node in self._graph.nodes if node not in inside)
        found = (norm_of(node, source) for node, source in calls if source is not None)
        return written + [norm for norm in found if norm is not None]

    def ways(self, node: fx.Node, *below: Operation) -> list[Way]:
        """All ways up from `node`, with what is `below` it; none from behind another FiLM, but that norm which stands
        between the two."""
        found, seen = [], {node}
        todo: list[tuple[fx.Node, tuple[Operation, ...]]] = []
        if not below or node not in self._begins_norm:
            todo.append((node, below))
        while todo:
            top, operations = todo.pop()
            convolution, earlier = crossing_of(top) or (convolution_of(top), [])
            if convolution is not None:
                found.append(Way(top, operations, convolution, earlier))
                continue
            steps = self._steps(top)
            if not steps and (steps is not None or any(isinstance(one, Norm) for one in operations)):
                found.append(Way(top, operations))
            for above, step in steps or []:
                if above not in seen:
                    seen.add(above)
                    todo.append((above, (step, *operations)))
        return found

    def _steps(self, node: fx.Node) -> list[tuple[fx.Node, Operation]] | None:
        """What `node` may be the end of in a chain, each with the node above; None where it is a FiLM itself: whatever
        stands behind that is found from there."""
        if node not in self._above:
            self._above[node] = self._look_above(node)
        return self._above[node]

    def _look_above(self, node: fx.Node) -> list[tuple[fx.Node, Operation]] | None:
        found: list[tuple[fx.Node, Operation]] = [(norm.source, norm) for norm in self._norms.get(node, [])]
        if is_arithmetic(node):
            sources = node.all_input_nodes
        else:
            first = first_argument(node)
            sources = [] if first is None else [first]
        is_film = False
        for source in sources:
            if source in self._begins_norm or asks_for_the_shape(node, source):
                continue
            operation = operation_of(node, source)
            if operation is None or not keeps_shape(node, source):
                continue
            if isinstance(operation, Affine):
                kinds = [kinds_beside(source, operation, self._factors, channels) for channels in (1, -1)]
                is_film = is_film or any(not one.isdisjoint(("channel", "point")) for one in kinds)
                if not any(one <= _OF_ALL_SAMPLES for one in kinds):
                    continue
            found.append((source, operation))
        return None if is_film and not found else found


def _is_written(operation: Operation) -> bool:
    return isinstance(operation, Norm) and operation.spelling == "written"


def is_one_reader_of_many(node: fx.Node, operation: Operation) -> bool:
    """Whether others than `operation` read the result of `node` too. All of a norm that is written out is one."""
    return not _is_written(operation) and len(users_of_values(node)) > 1
