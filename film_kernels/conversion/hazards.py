"""What would make it wrong to compute a chain as one call, where its last operation stands."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import fx

_VIEWS = {
    "view", "reshape", "unsqueeze", "squeeze", "expand", "expand_as", "permute", "transpose", "flatten", "detach",
    "contiguous", "chunk", "split", "narrow", "select", "t", "view_as", "to", "unflatten",
    operator.getitem, torch.unsqueeze, torch.squeeze, torch.reshape, torch.permute, torch.transpose, torch.flatten,
    torch.chunk, torch.split, torch.narrow,
}  # fmt: skip
_CONTEXTS = {"_set_grad_enabled", "_enter_autocast", "_exit_autocast", "_enter_inference_mode", "_exit_inference_mode"}
_IN_PLACE_OPERATORS = {
    operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.ipow, operator.setitem,
}  # fmt: skip


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _changes_in_place(node: fx.Node) -> bool:
    if node.op not in ("call_function", "call_method"):
        return False
    name = _name(node)
    ends = name.endswith("_") and not name.endswith("__")
    return ends or node.target in _IN_PLACE_OPERATORS or node.kwargs.get("inplace") is True or "out" in node.kwargs


def _base(node: object) -> object:
    """The tensor of which `node` is a view, or the result of a change in place."""
    while isinstance(node, fx.Node) and node.args and (node.target in _VIEWS or _changes_in_place(node)):
        node = node.args[0]
    return node


def what_changes_between(nodes: Sequence[fx.Node], read: Sequence[fx.Node]) -> str | None:
    """Why the chain `nodes` cannot be computed at its end: what it reads, `read`, is changed in between, or the two
    ends stand in different contexts. None where it can."""
    bases = {_base(node) for node in read}
    chain = set(nodes)
    node = nodes[0].next
    while node is not nodes[-1]:
        if _name(node) in _CONTEXTS:
            return "convolution and FiLM stand in different autocast or gradient modes"
        if node not in chain and _changes_in_place(node):
            changed = [node.kwargs["out"]] if "out" in node.kwargs else node.args[:1]
            if any(_base(one) in bases for one in changed):
                return "what the convolution or FiLM reads is changed in place in between"
        node = node.next
    return None
