"""Arrays that a model makes of numbers alone, by numpy, each time it is called: a filter's weights, say.

Dynamo has PyTorch imitate numpy, which takes some 50 us a function. In a graph that runs as it is, what nothing but
numbers goes into is made once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

_NAMES = ("numpy_to_tensor_wrapper", "numpy_operator_wrapper", "numpy_method_wrapper")


def fold_numpy(module: fx.GraphModule) -> None:
    """Change the graph of `module`, one of Dynamo's, in place."""
    imitations = tuple(kind for name in _NAMES if (kind := getattr(torch._dynamo.utils, name, None)) is not None)
    folded = False
    for nodes in _made_of_numbers(module.graph, imitations):
        value = _run(nodes)
        if value is not None:
            _put(module, nodes, value)
            folded = True
    if folded:
        module.recompile()


def _made_of_numbers(graph: fx.Graph, imitations: tuple[type, ...]) -> list[list[fx.Node]]:
    """Groups of nodes that read nothing but numbers and each other, in the graph's order."""
    groups: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        if not isinstance(node.target, imitations) or "random" in _module_of(node.target):
            continue
        if not all(source in groups for source in node.all_input_nodes):
            continue
        joined = [node]
        for group in {id(groups[source]): groups[source] for source in node.all_input_nodes}.values():
            joined += group
        for member in joined:
            groups[member] = joined
    distinct = {id(group): group for group in groups.values()}
    return [sorted(group) for group in distinct.values()]


def _module_of(target: Any) -> str:
    function = getattr(target, "f", getattr(target, "op", None))
    return getattr(function, "__module__", None) or ""


def _run(nodes: list[fx.Node]) -> Tensor | None:
    """What the last of `nodes` gives, where nobody else reads the others: some may be written into on the way."""
    group = set(nodes)
    if any(user not in group for node in nodes[:-1] for user in node.users):
        return None
    values: dict[fx.Node, Any] = {}
    try:
        for node in nodes:
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    except Exception:  # as the model will raise it, where it runs this itself
        return None
    value = values[nodes[-1]]
    return value if isinstance(value, Tensor) else None


def _put(module: fx.GraphModule, nodes: list[fx.Node], value: Tensor) -> None:
    """Let those who read the last of `nodes` read a copy of `value`, which they may write into."""
    graph, last = module.graph, nodes[-1]
    name = f"_film_kernels_{last.name}"
    module.register_buffer(name, value, persistent=False)
    with graph.inserting_before(last):
        copy = graph.call_method("clone", (graph.get_attr(name),))
    copy.meta.update(last.meta)
    last.replace_all_uses_with(copy)
    for node in reversed(nodes):
        graph.erase_node(node)
