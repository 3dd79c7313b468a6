"""What multiplies a convolution's result, or is added to it: a value per sample and channel, a constant, or a map."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

_NUMBERS = (int, float, torch.SymInt, torch.SymFloat)
_EXPANSIONS = ("expand", "expand_as", torch.broadcast_to, "broadcast_to")
_WITH_NUMBERS = (operator.add, operator.mul, torch.add, torch.mul, "add", "mul")


@dataclass(frozen=True)
class Factor:
    """`kind` is "channel" (one value per channel, of each sample or of all), "constant" (one number), "map" (varies
    over positions), "other", or "unknown" where shapes are not known; `value` is the node, without its expansion."""

    kind: str
    value: Any


def tensor_of(node: Any) -> Tensor | None:
    """The tensor, or fake tensor, that tells shape and dtype of `node`'s result, where it is known."""
    value = _known(node) if isinstance(node, fx.Node) else None
    return value if isinstance(value, Tensor) else None


def _known(node: fx.Node) -> Any:
    """What the graph knows of `node`'s result: a fake tensor, a symbolic number, or None."""
    if node.op == "get_attr" and "example_value" not in node.meta:
        value: Any = node.graph.owning_module
        for name in str(node.target).split("."):
            value = getattr(value, name)
        return value
    return node.meta.get("example_value")


def same(a: Any, b: Any) -> bool:
    """Whether two sizes, perhaps symbolic, are known to be equal; asking adds no guard."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # sympy takes long to import

    return statically_known_true(a == b)


def without_expansion(value: fx.Node) -> fx.Node:
    """What `value` expands to the shape of another tensor: broadcasting does that anyway. It is looked for behind sums
    and products with numbers too, `1 + gamma.expand_as(x)`, which are then written anew."""
    while value.op in ("call_method", "call_function") and value.target in _EXPANSIONS:
        value = value.args[0]  # type: ignore[assignment]
    operands = [arg for arg in value.args if isinstance(arg, fx.Node)]
    if value.target not in _WITH_NUMBERS or len(operands) != 1 or len(value.args) != 2 or value.kwargs:
        return value
    inner = without_expansion(operands[0])
    if inner is operands[0]:
        return value
    args = tuple(inner if arg is operands[0] else arg for arg in value.args)
    with value.graph.inserting_after(value):
        again = value.graph.create_node(value.op, value.target, args)
    again.meta.update(inner.meta, written_anew=True)  # the shape of `inner`
    return again


def is_of_a_factor(node: fx.Node) -> bool:
    """Whether `node` is one of the operations that `without_expansion` looks behind, which change nothing in place."""
    return node.target in _EXPANSIONS or node.target in _WITH_NUMBERS


def factor_of(value: Any, result: Tensor | None, spatial_rank: int) -> Factor:
    """What `value` is beside a convolution's result of the shape of `result`, if that is known."""
    if isinstance(value, _NUMBERS) or (isinstance(value, fx.Node) and isinstance(_known(value), _NUMBERS)):
        return Factor("constant", value)
    if not isinstance(value, fx.Node):
        return Factor("other", value)
    value = without_expansion(value)
    tensor = tensor_of(value)
    if tensor is None or result is None:
        known = trailing_ones(value) >= spatial_rank
        return Factor("channel" if known else "unknown", value)
    shape = (1,) * (result.dim() - tensor.dim()) + tuple(tensor.shape)
    batch, channels, *positions = shape
    if len(shape) != result.dim() or not any(same(batch, size) for size in (1, result.shape[0])):
        return Factor("other", value)
    if not all(same(size, 1) for size in positions):
        return Factor("map", value)
    if same(channels, result.shape[1]):
        return Factor("channel", value)
    return Factor("constant" if same(batch, 1) and same(channels, 1) else "other", value)


def trailing_ones(node: Any) -> int:
    """How many dimensions of size 1 the shape of `node`'s result ends in, as far as the code alone tells it."""
    if not isinstance(node, fx.Node) or not node.args:
        return 0
    source, *rest = node.args
    if node.target in (operator.getitem, torch.chunk, torch.split, "chunk", "split"):
        index = rest[0] if rest else None
        if node.target is not operator.getitem or isinstance(index, int):
            return trailing_ones(source)  # one of the parts of what was split by channel
        count = 0
        for item in reversed(index if isinstance(index, tuple) else (index,)):
            if item is not None:
                break
            count += 1
        return count
    if node.target in ("unsqueeze", "unsqueeze_", torch.unsqueeze):
        dim = rest[0] if rest else node.kwargs.get("dim")
        return trailing_ones(source) + 1 if dim == -1 or (isinstance(dim, int) and dim >= 2) else 0
    if node.target in ("view", "reshape", torch.reshape):
        sizes = rest[0] if rest and isinstance(rest[0], (tuple, list)) else rest
        count = 0
        for size in reversed(sizes):
            if not isinstance(size, int) or size != 1:
                break
            count += 1
        return count
    if node.target in (operator.add, operator.mul, operator.sub, torch.add, torch.mul, "add", "mul"):
        return max(trailing_ones(arg) for arg in node.args)  # 1 + gamma
    return 0
