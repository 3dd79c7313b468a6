"""Puts one call in place of every fusable chain of a graph."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx

from ..functional import conv_film, norm_film
from ..packed import conv_film_packed
from .direct import direct_call
from .effects import changed_by, may_share_memory
from .factors import is_of_a_factor
from .folding import Step, conv_steps_film, norm_steps_film
from .gain import judged
from .match import Link, Match
from .matching import matches
from .nodes import asks_for_the_shape, is_parameter, tensor_of
from .records import Affine, Convolution, Norm, Root

# What is put into a graph; these change nothing that they are given.
OURS = (conv_steps_film, norm_steps_film, conv_film, conv_film_packed, norm_film)
_NAMES = {("scale", False): "scale", ("scale", True): "divide", ("shift", False): "shift", ("shift", True): "subtract"}


class Wishes(NamedTuple):
    """What a user of `fuse` chooses for all sites: its arguments of these names; and whether Inductor compiles what is
    left."""

    norms: bool = True
    keep: str = "fast"
    convolutions: bool = False
    frozen: bool = False
    before_inductor: bool = False


def found_in(graph: fx.Graph, wishes: Wishes, training: bool | None = None) -> list[Match]:
    """The sites of `graph`, one of Dynamo's or of torch.fx's, with a reason where they are not to be swapped;
    `training` as `judged` has it."""
    judge = functools.partial(judged, frozen=wishes.frozen, training=training, before_inductor=wishes.before_inductor)
    return matches(graph, wishes.norms, wishes.convolutions, judge)


def swap(module: fx.GraphModule, wishes: Wishes = Wishes()) -> list[Match]:  # noqa: B008  # which never changes
    """Change the graph of `module`, one of Dynamo's, in place; the matches that were swapped."""
    taken: set[fx.Node] = set()
    swapped = []
    for match in found_in(module.graph, wishes):
        if match.reason is None and taken.isdisjoint(match.nodes):
            taken.update(match.nodes)
            swapped.append(match)
    # What the last ones read, when it is swapped later, is replaced in their calls.
    for match in sorted(swapped, key=lambda match: match.nodes[-1], reverse=True):
        _swap_one(module.graph, match, wishes)
    _erase_unused(node for node in reversed(module.graph.nodes) if "written_anew" in node.meta)
    if any(match.norm is not None for match in swapped):
        _let_views_copy(module.graph)
    if swapped:
        module.graph.lint()
        module.recompile()
    for body in checkpointed(module):
        swapped += swap(body, wishes)
    return swapped


def _let_views_copy(graph: fx.Graph) -> None:
    """Make `reshape` of `view`. norm_film's result lies in memory as its input does, where another norm's may be
    contiguous, so that a view of it, or of what is made of it, may have to be a copy. Where something may be changed
    through the view, it stays one, and would raise."""
    changes = [changed_by(node) for node in graph.nodes if node.target not in OURS]
    changed = [one for some in changes for one in some or ()]
    for node in graph.find_nodes(op="call_method", target="view") if None not in changes else ():
        takes_dtype = node.kwargs or any(isinstance(arg, torch.dtype) for arg in node.args)
        if not takes_dtype and not any(may_share_memory(node, one) for one in changed):
            node.target = "reshape"


def checkpointed(module: fx.GraphModule) -> list[fx.GraphModule]:
    """The bodies of `torch.utils.checkpoint` in a graph of Dynamo's, which are graphs of their own."""
    bodies = []
    for node in module.graph.nodes:
        if getattr(node.target, "__name__", "") == "tag_activation_checkpoint" and isinstance(node.args[0], fx.Node):
            body = getattr(module, str(node.args[0].target))
            if isinstance(body, fx.GraphModule):
                bodies.append(body)
    return bodies


def _swap_one(graph: fx.Graph, match: Match, wishes: Wishes) -> None:
    last = match.nodes[-1]
    with graph.inserting_after(last):
        direct = direct_call(match)
        call = _composed(graph, match) if direct is None else graph.call_function(direct[0], (), direct[1])
        if match.norm is None:
            call.kwargs = {**call.kwargs, "keep": wishes.keep}
            if wishes.frozen and _is_of_parameters(match):
                _freeze(call)
    call.meta.update(last.meta)
    last.replace_all_uses_with(call)
    unused = [*reversed(match.nodes)]
    if match.norm is not None and match.norm.source is not match.call["input"]:
        unused.append(match.norm.source)  # a conversion
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


def _composed(graph: fx.Graph, match: Match) -> fx.Node:
    """The call where factors are composed first."""
    activation = match.activation
    options = {
        "before": _steps(match.before),
        "activation": "none" if activation is None else activation.name,
        "negative_slope": 0.01 if activation is None else activation.negative_slope,
        "after": _steps(match.after),
        "film_position": match.film_position,
    }
    if match.norm is None:
        return graph.call_function(conv_steps_film, _arguments_of_convolution(match.root), options)
    norm = {name: value for name, value in match.call.items() if name != "input"}
    result = tensor_of(match.nodes[-1])
    assert result is not None  # Dynamo knows
    options["dtype"] = result.dtype
    return graph.call_function(norm_steps_film, (match.call["input"], norm), options)


def _is_of_parameters(match: Match) -> bool:
    """Whether the weight, and what would go into it, is the same at every call until somebody writes to it."""
    assert isinstance(match.root, Convolution)
    factors = [factor for link in match.before for factor in link.factors]
    of_parameters = match.film_position == "pre" or all(factor.is_of_all_samples for factor in factors)
    weight = match.root.arguments["weight"]
    return isinstance(weight, fx.Node) and is_parameter(weight) and of_parameters


def _freeze(call: fx.Node) -> None:
    if call.target is conv_film:
        call.target = conv_film_packed
    else:
        call.kwargs = {**call.kwargs, "frozen": True}


def _arguments_of_convolution(root: Root) -> tuple[Any, ...]:
    assert isinstance(root, Convolution)  # whatever else a site begins with has a reason not to be fused
    defaults = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    arguments = {**defaults, **root.arguments}
    return tuple(arguments[name] for name in ("input", "weight", "bias", "stride", "padding", "dilation", "groups"))


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
