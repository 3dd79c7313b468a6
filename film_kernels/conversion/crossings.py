"""Convolutions whose result goes from one of Dynamo's graphs into another: FiLM behind the cut is listed, not fused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, fx

from .operations import convolution_of, operation_of
from .reasons import Reason
from .records import Affine, Convolution, Operation

CUT = Reason("Dynamo cuts the graph between convolution and FiLM, at a print or a branch on a tensor's value, say")


class Crossings:
    """Follows tensors from graph to graph while a model is run."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Tensor, Convolution, list[Operation]]] = {}  # by the id of a tensor, which is kept

    def enter(self, graph: fx.Graph, values: Sequence[Any]) -> None:
        """Mark those inputs of `graph` that a convolution in another has made."""
        for node, value in zip(graph.find_nodes(op="placeholder"), values, strict=False):
            if id(value) in self._made:
                _, convolution, steps = self._made[id(value)]
                node.meta["nn_module_stack"] = convolution.node.meta.get("nn_module_stack", {})
                node.meta["crossing"] = (replace(convolution, node=node, cut=True), steps)

    def leave(self, graph: fx.Graph, values: Any) -> None:
        """Remember which of the results of `graph` come from a convolution, by way of what a chain may hold."""
        results: Any = graph.output_node().args[0]
        for node, value in zip(results, values, strict=False):
            found = _above(node) if isinstance(value, Tensor) and isinstance(node, fx.Node) else None
            if found is not None:
                self._made[id(value)] = value, *found


def crossing_of(node: fx.Node) -> tuple[Convolution, list[Operation]] | None:
    """The convolution that made an input of a graph, and what follows it in its own graph."""
    return node.meta.get("crossing")


def _above(node: fx.Node) -> tuple[Convolution, list[Operation]] | None:
    steps: list[Operation] = []
    while True:
        convolution = convolution_of(node)
        if convolution is not None:
            return convolution, steps[::-1]
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node):
            return None
        step = operation_of(node, source)
        if step is None or isinstance(step, Affine):
            return None
        steps.append(step)
        node = source
