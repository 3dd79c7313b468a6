"""Puts one call in place of every fusable chain of a graph."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence

from torch import fx

from .factors import is_of_a_factor
from .folding import Step, conv_steps_film
from .match import Link, Match
from .matching import matches
from .nodes import asks_for_the_shape, tensor_of
from .records import Affine, Convolution, Norm

_NAMES = {("scale", False): "scale", ("scale", True): "divide", ("shift", False): "shift", ("shift", True): "subtract"}


def swap(module: fx.GraphModule) -> list[Match]:
    """Change the graph of `module`, one of Dynamo's, in place; the matches that were swapped."""
    taken: set[fx.Node] = set()
    swapped = []
    for match in matches(module.graph):
        if match.reason is None and taken.isdisjoint(match.nodes):
            taken.update(match.nodes)
            swapped.append(match)
    for match in reversed(swapped):  # what the last ones read, when it is swapped later, is replaced in their calls
        _swap_one(module.graph, match)
    _erase_unused(node for node in reversed(module.graph.nodes) if "written_anew" in node.meta)
    if swapped:
        module.graph.lint()
        module.recompile()
    for body in checkpointed(module):
        swapped += swap(body)
    return swapped


def checkpointed(module: fx.GraphModule) -> list[fx.GraphModule]:
    """The bodies of `torch.utils.checkpoint` in a graph of Dynamo's, which are graphs of their own."""
    bodies = []
    for node in module.graph.nodes:
        if getattr(node.target, "__name__", "") == "tag_activation_checkpoint" and isinstance(node.args[0], fx.Node):
            body = getattr(module, str(node.args[0].target))
            if isinstance(body, fx.GraphModule):
                bodies.append(body)
    return bodies


def _swap_one(graph: fx.Graph, match: Match) -> None:
    assert isinstance(match.root, Convolution)  # whatever else a site begins with has a reason not to be fused
    defaults = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    arguments = {**defaults, **match.root.arguments}
    activation = match.activation
    last = match.nodes[-1]
    with graph.inserting_after(last):
        call = graph.call_function(
            conv_steps_film,
            tuple(arguments[name] for name in ("input", "weight", "bias", "stride", "padding", "dilation", "groups")),
            {
                "before": _steps(match.before),
                "activation": "none" if activation is None else activation.name,
                "negative_slope": 0.01 if activation is None else activation.negative_slope,
                "after": _steps(match.after),
                "film_position": match.film_position,
            },
        )
    call.meta.update(last.meta)
    last.replace_all_uses_with(call)
    unused = [*reversed(match.nodes)]
    unused += [
        value
        for link in (*match.before, *match.after)
        if isinstance(link.operation, Affine)
        for value in link.operation.values
    ]
    erased = _erase_unused(node for node in unused if isinstance(node, fx.Node))
    left = [node for node in reversed(match.nodes) if node not in erased]
    for node in left:
        _answer_questions(node)
    _erase_unused(left)


def _answer_questions(node: fx.Node) -> None:
    """Let those who are brought to the dtype or shape of `node`, `beta.to(h)`, be told it, so that nobody needs `node`
    for that."""
    value = tensor_of(node)
    for user in [user for user in node.users if asks_for_the_shape(user, node)]:
        if value is None or user.op != "call_method" or user.args[1:2] != (node,):
            continue
        if user.target in ("to", "type_as"):
            user.target, user.args = "to", (user.args[0], value.device, value.dtype, *user.args[2:])
        elif all(isinstance(size, int) for size in value.shape):
            user.target, user.args = str(user.target).removesuffix("_as"), (user.args[0], *value.shape)


def _erase_unused(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Erase those of `nodes` that nobody reads any more, users first: a chain, and its factors as they were, expanded;
    and what is made of the shape of a chain's node alone. What was erased."""
    erased: set[fx.Node] = set()

    def erase(node: fx.Node) -> None:
        for user in list(node.users):
            if is_of_a_factor(user) or asks_for_the_shape(user, node) or user.target is operator.getitem:
                erase(user)
        if not node.users and node not in erased and node.op != "placeholder":
            erased.add(node)
            node.graph.erase_node(node)

    for node in nodes:
        erase(node)
    return erased


def _steps(links: Sequence[Link]) -> tuple[Step, ...]:
    found: list[Step] = []
    for link in links:
        operation = link.operation
        if isinstance(operation, Norm):
            norm = operation
            found.append(("batch_norm", norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps))
        elif isinstance(operation, Affine):
            names = ("scale", "shift") if operation.name == "film" else (_NAMES[operation.name, operation.inverse],)
            found += [(name, factor.value) for name, factor in zip(names, link.factors, strict=True)]
    return tuple(found)
