"""Norms that are written out: means, variances and roots of a convolution's result that come together again, or a norm
between a permutation and its way back."""

from __future__ import annotations

import operator

import torch
from torch import fx

from .nodes import same_shape, target_of, tensor_of, users_of_values, word_of
from .operations import NORMS, Operation, is_one_of, norm

_MOST_NODES = 40
_PERMUTATIONS = {"permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims"}
_STATISTICS = {"mean", "var", "std", "var_mean", "std_mean", "sum", "norm", "vector_norm", "linalg_vector_norm"}
_ROOTS = {"rsqrt", "sqrt", "truediv", "div", "divide", "reciprocal", "std", "norm", "vector_norm",
          "linalg_vector_norm", "addcdiv"}  # fmt: skip
_OTHERS = {
    "view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "expand", "expand_as", "contiguous", "getitem",
    "clone", "rearrange", "to", "type", "type_as", "float", "half", "bfloat16", "double", "size",
    "add", "sub", "rsub", "mul", "multiply", "subtract", "neg", "pow", "square", "abs", "clamp", "clamp_min",
    "maximum", "addcmul", "iadd", "isub", "imul", "itruediv",
}  # fmt: skip
_WORDS = _PERMUTATIONS | _STATISTICS | _ROOTS | _OTHERS


def written_norm(start: fx.Node) -> Operation | None:
    """The norm of the result of `start` that is written out behind it: all that is made of that result comes together
    in one node of its shape, by way of statistics and a root, or of one of PyTorch's norms in another layout."""
    shape = tensor_of(start)
    inside: list[fx.Node] = []
    waiting = set(users_of_values(start))
    node = start
    while waiting and len(inside) < _MOST_NODES:
        if not all(word_of(one) in _WORDS or is_one_of(target_of(one), NORMS) for one in waiting):
            return None
        node = node.next
        if node not in waiting:
            continue
        inside.append(node)
        waiting.remove(node)
        name = _name(inside)
        result = tensor_of(node)
        back = result is None or shape is None or same_shape(result, shape)
        if not waiting and name is not None and back and _permutations(inside) % 2 == 0:
            return norm(name, node)
        waiting.update(users_of_values(node))
    return None


def _name(nodes: list[fx.Node]) -> str | None:
    """What norm `nodes` are, or None."""
    for node in nodes:
        if is_one_of(target_of(node), NORMS):
            return NORMS[target_of(node)]
    words = {word_of(node) for node in nodes}
    if not words & _STATISTICS or not (words & _ROOTS or any(_is_root(node) for node in nodes)):
        return None
    if not words & {"sub", "rsub", "subtract", "isub"}:
        return "rms_norm"
    positions = any(dim not in (1, (1,), [1]) for dim in _dimensions(nodes))
    return "norm" if positions else "layer_norm"


def _dimensions(nodes: list[fx.Node]) -> list[object]:
    found = [node for node in nodes if word_of(node) in _STATISTICS]
    return [node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None) for node in found]


def _is_root(node: fx.Node) -> bool:
    exponent = node.args[1] if len(node.args) > 1 else None
    return node.target in (operator.pow, torch.pow, "pow") and exponent in (0.5, -0.5)


def _permutations(nodes: list[fx.Node]) -> int:
    return sum(word_of(node) in _PERMUTATIONS for node in nodes)
