"""FiLM with no convolution in front of it: behind a norm, which may take it in, or behind anything else, where it is
listed, and not fused.

In doubt it is not FiLM, since residuals, gates, masks and positional embeddings are scales and shifts too. Behind a
norm a scale or a shift of each sample and channel is enough; elsewhere only both together are, of one conditioning.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import Tensor, fx, nn

from .chain import Chain
from .factors import Factor, Factors, trailing_ones
from .maps import is_gate
from .match import Link, Match
from .nodes import asks_for_the_shape, is_parameter, same, same_shape, target_of, tensor_of, word_of
from .operations import convolution_of, is_arithmetic
from .reasons import Reason
from .records import Affine, Norm, Operation, Other
from .upward import Upward, Way
from .written_norms import VIEWS

_KNOWN = ("channel", "learnt", "fixed", "constant")


def match_without_convolution(way: Way, channels: int, factors: Factors, upward: Upward) -> Match | None:
    """The FiLM that `way` leads to, with one value for each of the channels, the dimension `channels`; None where it is
    none."""
    root, operations = _root_of(way)
    result = tensor_of(root.node)
    if result is None and not isinstance(root, Norm):
        return None
    if result is not None and not _may_be_modulated(result, channels):
        return None
    if isinstance(root, Norm) and _is_of_a_mixture(root.source, factors, upward):
        return None
    rank = 1 if result is None else result.dim() - 2
    chain = Chain(root, rank, factors, why_no_convolution(root), channels=channels)
    chain.follow(operations)
    match = chain.match()
    if match is None or not _is_conditioned(match, result):
        return None
    if isinstance(root, Norm):
        return _behind_convolution(match, root) or match
    return match if _is_plainly_film(match, result) else None


def _may_be_modulated(result: Tensor, channels: int) -> bool:
    """Whether there are several positions and channels. One value for each sample is the weight of a loss, or says
    whether a layer is skipped; one of each channel is a vector, as gamma is itself."""
    if result.dim() < 3 or same(result.shape[channels], 1):
        return False
    positions = result.shape[2:] if channels == 1 else result.shape[1:-1]
    return not all(same(size, 1) for size in positions)


def match_of_norm(norm: Norm, factors: Factors) -> Match | None:
    """`norm` with what follows it up to an activation, FiLM or none, where norm_film serves all of that."""
    result = tensor_of(norm.node)
    chain = Chain(norm, 1 if result is None else result.dim() - 2, factors, channels=norm.channels)
    chain.descend()
    match = chain.match(without_film=True)
    return None if match is None or match.reason is not None or match.activation is None else match


def why_no_convolution(root: Norm | Other) -> list[Reason]:
    """Why FiLM behind `root` is not fused, unless that is a norm."""
    if isinstance(root, Norm):
        return []
    if root.name:
        text = "a linear layer stands in front of FiLM, and only convolutions and norms have kernels that take it in"
    else:
        text = "neither a convolution nor a norm stands in front of FiLM, and only these have kernels that take it in"
    return [Reason(text)]


def _root_of(way: Way) -> tuple[Norm | Other, Sequence[Operation]]:
    """The last norm on the way, and what follows it; without one, what the way begins with."""
    for index, operation in reversed(list(enumerate(way.operations[:-1]))):
        if isinstance(operation, Norm):
            return operation, way.operations[index + 1 :]
    is_linear = target_of(way.top) is nn.Linear or word_of(way.top) == "linear"
    return Other(way.top, "linear" if is_linear else ""), way.operations


def _behind_convolution(match: Match, norm: Norm) -> Match | None:
    """The same from the convolution on, where there are only views between it and the norm: the tokens of a picture."""
    node = norm.source
    while word_of(node) in VIEWS and node.args and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    convolution = convolution_of(node)
    if convolution is None or node is norm.source:
        return None
    return replace(match, root=convolution, front=(Link(norm),))


def _is_of_a_mixture(node: fx.Node, factors: Factors, upward: Upward) -> bool:
    """Whether `node` adds or multiplies a convolution's result and something that is not known to have its shape, as a
    residual has, and is no FiLM either: noise, a mask, positions. What then stands behind the norm is not known
    either."""
    if not is_arithmetic(node):
        return False
    result = tensor_of(node)

    def is_known(one: fx.Node) -> bool:
        tensor = tensor_of(one)
        has_shape = tensor is not None and result is not None and same_shape(tensor, result)
        return has_shape or (result is not None and factors.of(one, result, result.dim() - 2).kind in _KNOWN)

    if all(map(is_known, node.all_input_nodes)):
        return False
    return any(way.convolution is not None for one in node.all_input_nodes for way in upward.ways(one))


def _is_conditioned(match: Match, result: Tensor | None) -> bool:
    """Whether what scales and shifts is of each sample, no gate, and not made of what is scaled and shifted."""
    links = [link for link in match.links if link.is_film(False)]
    if any(isinstance(link.operation, Affine) and is_gate(link.operation.scale) for link in links):
        return False
    found = _channel_factors(links)
    if not all(_is_of_each_sample(factor, result) for factor in found):
        return False
    own = {*match.nodes, match.root.source if isinstance(match.root, Norm) else match.root.node}
    return own.isdisjoint(_made_of([factor.value for factor in found], min(own)))


def _is_plainly_film(match: Match, result: Tensor | None) -> bool:
    """Whether there are both a scale and a shift of each sample, made of the same, and that is no map: pooled maps make
    gates, and the statistics of a sequence bring it back to where it was."""
    scales: set[fx.Node] = set()
    shifts: set[fx.Node] = set()
    for link in match.links:
        operation = link.operation
        for value, factor in zip(operation.values if isinstance(operation, Affine) else (), link.factors, strict=True):
            if factor.kind == "channel":
                (scales if value is operation.scale else shifts).add(factor.value)  # type: ignore[union-attr]
    if not scales or not shifts or result is None:
        return False
    common = _made_of(scales) & _made_of(shifts)
    return bool(common) and not any(_is_map(node, result) for node in _made_of(scales | shifts))


def _channel_factors(links: Iterable[Link]) -> list[Factor]:
    return [factor for link in links for factor in link.factors if factor.kind == "channel"]


def _is_of_each_sample(factor: Factor, result: Tensor | None) -> bool:
    """Without shapes, whether the code tells that it does not vary over positions: a sum with another map may."""
    tensor = tensor_of(factor.value)
    if tensor is None or result is None:
        return trailing_ones(factor.value, min) > 0
    return tensor.dim() == result.dim() and same(tensor.shape[0], result.shape[0])


def _is_map(node: fx.Node, result: Tensor) -> bool:
    tensor = tensor_of(node)
    return (
        tensor is not None
        and tensor.dim() == result.dim()
        and not any(
            all(same(size, 1) for size in (*tensor.shape[1:at], *tensor.shape[at + 1 :]))
            for at in range(1, tensor.dim())
        )
    )


def _made_of(values: Iterable[fx.Node], first: fx.Node | None = None) -> set[fx.Node]:
    """What the values in `values` come from, parameters and buffers apart; nothing in front of `first`."""
    found: set[fx.Node] = set()
    todo = list(values)
    while todo:
        node = todo.pop()
        if node in found or is_parameter(node) or (first is not None and node < first):
            continue
        found.add(node)
        todo += [one for one in node.all_input_nodes if not asks_for_the_shape(node, one)]
    return found
