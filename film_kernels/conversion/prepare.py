"""Calls of a captured graph that are to run as it is: Dynamo's guards see to it that their tensors are always of the
kinds that they were, so that each is prepared for these."""

from __future__ import annotations

from torch import fx

from ..prepared import FRONTS, Prepared
from ..problems.conv_film import TENSORS
from .nodes import nodes_in, tensor_of
from .swap import checkpointed


def prepare(module: fx.GraphModule) -> None:
    """Change the graph of `module`, in which sites have been swapped, in place."""
    changed = False
    for node in module.graph.nodes:
        if node.target not in FRONTS or node.args:
            continue
        tensors = tuple(node.kwargs.get(name) for name in TENSORS)
        options = {name: value for name, value in node.kwargs.items() if name not in TENSORS}
        if nodes_in(options) or not all(_is_always_the_same(tensor) for tensor in tensors):
            continue
        node.target, node.args, node.kwargs = Prepared(node.target, options), tensors, {}
        changed = True
    if changed:
        module.recompile()
    for body in checkpointed(module):
        prepare(body)


def _is_always_the_same(value: object) -> bool:
    """Whether a tensor is on a CPU, and none of its sizes may be another in the next call."""
    if value is None:
        return True
    tensor = tensor_of(value) if isinstance(value, fx.Node) else None
    return tensor is not None and tensor.device.type == "cpu" and all(isinstance(size, int) for size in tensor.shape)
