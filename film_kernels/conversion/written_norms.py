"""Norms that are written out: means, variances and roots of a convolution's result that come together again, or a norm
between a permutation and its way back."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from .formulas import is_norm_of, norm_written_as
from .nodes import first_argument, known_value, same, same_shape, tensor_of, users_of_values, word_of
from .norms import is_norm, norm_of
from .operations import operation_of
from .records import Norm

_MOST_NODES = 40
_PERMUTATIONS = {"permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims"}
VIEWS = _PERMUTATIONS | {"flatten", "unflatten", "reshape", "view", "contiguous", "rearrange"}
_STATISTICS = {"mean", "var", "std", "var_mean", "std_mean", "sum", "norm", "vector_norm", "linalg_vector_norm"}
_ROOTS = {"rsqrt", "sqrt", "truediv", "div", "divide", "reciprocal", "std", "norm", "vector_norm",
          "linalg_vector_norm", "addcdiv"}  # fmt: skip
_OTHERS = {
    "view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "expand", "expand_as", "contiguous", "getitem",
    "clone", "rearrange", "to", "type", "type_as", "float", "half", "bfloat16", "double", "size",
    "add", "sub", "rsub", "mul", "multiply", "subtract", "neg", "pow", "square", "abs", "clamp", "clamp_min",
    "maximum", "addcmul", "iadd", "isub", "imul", "itruediv",
}  # fmt: skip
_OF_STATISTICS = _STATISTICS | {"rsqrt", "sqrt", "reciprocal"}
_DIFFERENCES = {"sub", "rsub", "subtract", "isub"}
_WORDS = _PERMUTATIONS | _STATISTICS | _ROOTS | _OTHERS


def written_norms(graph: fx.Graph) -> Iterator[Norm]:
    """Every norm that is written out in `graph`, of results that no single operation of a chain reads; without those
    that are a part of another."""
    inside: set[fx.Node] = set()
    for node in graph.nodes:
        nodes = _between_views(node) if is_norm(node) else []
        if nodes:
            inside.update(nodes[nodes.index(node) : -1])  # others may read what is in front of it too
            yield _in_another_layout(nodes, node)
    for node in graph.nodes:
        readers = users_of_values(node)
        if node in inside or not any(map(_may_be_inside, readers)):
            continue
        result = tensor_of(node)
        if known_value(node) is not None and (result is None or result.dim() < 3):
            continue  # nothing of a picture's or a sequence's shape
        if len(readers) > 1 or operation_of(readers[0], node) is None:
            nodes = _written_norm(node)
            if nodes:
                inside.update(nodes[:-1])
                yield _record(node, nodes)


def _between_views(norm: fx.Node) -> list[fx.Node]:
    """The nodes from a view in front of one of PyTorch's norms to the view behind it that brings its result to the
    shape in front of the first, as many as there are, or none."""
    above = first_argument(norm)
    nodes, found = [norm], []
    while above is not None and _is_view(above):
        nodes, above = [above, *nodes], first_argument(above)
        behind, last = list(nodes), norm
        while len(readers := users_of_values(last)) == 1 and _is_view(readers[0]):
            last = readers[0]
            behind.append(last)
            before, after = tensor_of(above), tensor_of(last)
            is_back = before is None or after is None or same_shape(before, after)
            if is_back and _permutations(behind) % 2 == 0:
                found = list(behind)
    return found


def _is_view(node: fx.Node) -> bool:
    return word_of(node) in VIEWS and len(node.all_input_nodes) == 1


def _may_be_inside(node: fx.Node) -> bool:
    return word_of(node) in _WORDS


def _written_norm(start: fx.Node) -> list[fx.Node]:
    """The nodes of the norm of the result of `start` that is written out behind it, or none: all that is made of that
    result alone comes together in one node of its shape, by way of statistics and a root. (What reads that result
    beside another, as a residual does, has its own use of it.)"""
    shape = tensor_of(start)
    inside: list[fx.Node] = []
    waiting = {node for node in users_of_values(start) if _may_be_inside(node) and _reads_no_other(node, start)}
    while waiting and len(inside) < _MOST_NODES:
        if not all(map(_may_be_inside, waiting)):
            return []
        node = min(waiting)  # in the graph's order
        inside.append(node)
        waiting.remove(node)
        result = tensor_of(node)
        back = word_of(node) not in _OF_STATISTICS  # whatever its shape is, if that is not known
        back = back and (result is None or shape is None or same_shape(result, shape))
        if not waiting and back and _is_a_norm(inside) and _permutations(inside) % 2 == 0:
            return inside
        waiting.update(users_of_values(node))
    return []


def _reads_no_other(node: fx.Node, start: fx.Node) -> bool:
    """Whether all that `node` reads is made of `start`."""
    made: dict[fx.Node, bool] = {start: True}

    def is_made(one: fx.Node) -> bool:
        if one not in made:
            made[one] = one > start and bool(one.all_input_nodes) and all(map(is_made, one.all_input_nodes))
        return made[one]

    return all(map(is_made, node.all_input_nodes))


def _is_a_norm(nodes: list[fx.Node]) -> bool:
    """Whether `nodes` take statistics and a root of them."""
    words = {word_of(node) for node in nodes}
    return bool(words & _STATISTICS and (words & _ROOTS or any(_is_root(node) for node in nodes)))


def _record(start: fx.Node, nodes: list[fx.Node]) -> Norm:
    name = "rms_norm"
    if not {word_of(node) for node in nodes}.isdisjoint(_DIFFERENCES):
        name = "norm" if any(dim not in (1, (1,), [1]) for dim in _dimensions(nodes)) else "layer_norm"
    kind, dims, eps = _formula(start, nodes)
    channels = -1 if dims == (-1,) else 1
    return Norm(nodes[-1], start, kind, name, "written", channels, dims, eps=eps, inside=tuple(nodes))


def _in_another_layout(nodes: list[fx.Node], norm: fx.Node) -> Norm:
    """A norm of PyTorch's between views: over the channels where it has as many numbers as there are channels."""
    start = nodes[0].all_input_nodes[0]
    inner = norm_of(norm, start)
    assert inner is not None
    outside, inside = tensor_of(start), tensor_of(inner.node)
    channels, dims, kind = inner.channels, inner.dims, inner.kind
    if _permutations(nodes) and inner.dims == (-1,):
        known = outside is not None and inside is not None and outside.dim() > 2
        of_channels = known and same(outside.shape[1], inside.shape[-1])  # type: ignore[union-attr]
        channels, dims = 1, (1,) if of_channels else None
    elif outside is not None and inside is not None and not same_shape(outside, inside):
        dims = None
    if dims is not None and outside is not None and not is_norm_of(start, nodes, inner.node, dims, outside):
        kind = "statistics"
    return replace(
        inner, node=nodes[-1], source=start, kind=kind, spelling="written", channels=channels, dims=dims,
        inside=tuple(nodes),
    )  # fmt: skip


def _formula(start: fx.Node, nodes: list[fx.Node]) -> tuple[str, tuple[int, ...] | None, Any]:
    """What kind of norm is written, over which dimensions, and its eps. The kind is told only where the formula is that
    of PyTorch's own norm."""
    dims, shape = _same_dimensions(nodes), tensor_of(start)
    if dims is None:
        return "statistics", None, None
    kind, eps = norm_written_as(start, nodes, dims, 4 if shape is None else shape.dim())
    if kind == "mean":
        over_positions = shape is not None and sorted(dim % shape.dim() for dim in dims) == list(range(2, shape.dim()))
        kind = "layer" if dims in ((1,), (-1,)) else "instance" if over_positions else None
    return kind or "statistics", dims, eps if kind else None


def _same_dimensions(nodes: list[fx.Node]) -> tuple[int, ...] | None:
    """The dimensions that all statistics are taken over, or None."""
    found: set[tuple[int, ...]] = set()
    for dim in _dimensions(nodes):
        dims = tuple(dim) if isinstance(dim, (tuple, list)) else (dim,)
        if not dims or not all(isinstance(one, int) for one in dims):
            return None
        found.add(dims)
    return found.pop() if len(found) == 1 else None


def _dimensions(nodes: list[fx.Node]) -> list[Any]:
    found = [node for node in nodes if word_of(node) in _STATISTICS]
    return [node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None) for node in found]


def _is_root(node: fx.Node) -> bool:
    exponent = node.args[1] if len(node.args) > 1 else None
    return node.target in (operator.pow, torch.pow, "pow") and exponent in (0.5, -0.5)


def _permutations(nodes: list[fx.Node]) -> int:
    return sum(word_of(node) in _PERMUTATIONS for node in nodes)
