"""Where FiLM may stand in a graph: every scale and shift by what may be one value per sample and channel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from .factors import Factors
from .nodes import same_shape, tensor_of, users_of_values
from .operations import is_arithmetic, operation_of
from .records import Affine


@dataclass(frozen=True)
class Candidate:
    """`operation` scales or shifts the result of `source`, whose channels are the dimension `channels`; it is one
    `by_parameters` where only those do."""

    source: fx.Node
    operation: Affine
    by_parameters: bool = False
    channels: int = 1


def candidates(graph: fx.Graph, factors: Factors) -> Iterator[Candidate]:
    """Every scale and shift in `graph` that may be the first of a FiLM, in the graph's order; one whose operands could
    both be what passes is there twice, as is one whose channels could be either dimension."""
    for node in list(graph.nodes):
        for source in node.all_input_nodes if is_arithmetic(node) else ():
            operation = operation_of(node, source)
            if isinstance(operation, Affine) and keeps_shape(node, source):
                yield from _candidates(source, operation, factors)


def _candidates(source: fx.Node, operation: Affine, factors: Factors) -> Iterator[Candidate]:
    kinds = kinds_beside(source, operation, factors)
    if kinds & {"map", "other"} and "channel" in kinds_beside(source, operation, factors, -1):
        yield Candidate(source, operation, channels=-1)
    if "other" in kinds:
        return
    if kinds & {"channel", "point"} or (kinds & {"map", "unknown"} and has_scale_and_shift(operation)):
        yield Candidate(source, operation)
    elif "learnt" in kinds:
        if tensor_of(source) is None and has_scale_and_shift(operation):
            yield Candidate(source, operation)
        if operation.scale is not None:
            yield Candidate(source, operation, by_parameters=True)


def kinds_beside(source: fx.Node, operation: Affine, factors: Factors, channels: int = 1) -> set[str]:
    """What `operation` scales and shifts the result of `source` by. Where shapes are not known, that of a sequence is
    assumed, the least that there is."""
    result = tensor_of(source)
    rank = 1 if result is None else result.dim() - 2
    return {factors.of(value, result, rank, channels).kind for value in operation.values}


def has_scale_and_shift(operation: Affine) -> bool:
    """Whether `operation` is both, or a scale that a shift follows."""
    return operation.name == "film" or (operation.name == "scale" and shift_behind(operation) is not None)


def shift_behind(scale: Affine) -> Affine | None:
    """The shift of the result of `scale` by whoever reads it first."""
    follower = next(iter(users_of_values(scale.node)), None)
    shift = None if follower is None else operation_of(follower, scale.node)
    return shift if isinstance(shift, Affine) and shift.name == "shift" else None


def keeps_shape(node: fx.Node, source: fx.Node) -> bool:
    """Whether the result of `node` has the shape of that of `source`, as far as they are known."""
    result, before = tensor_of(node), tensor_of(source)
    return result is None or before is None or same_shape(result, before)
