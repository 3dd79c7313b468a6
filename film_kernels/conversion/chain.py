"""From what a site begins with down to the end of its FiLM: what can be fused, and why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from .crossings import CUT
from .effects import Touched
from .factors import Factor, Factors
from .films import shift_behind
from .hazards import what_changes_between
from .maps import is_gate, is_made_by_chain
from .match import Link, Match, activation_in, film_position
from .nodes import module_of, same_shape, tensor_of, users_of_values
from .norm_calls import before_widening, call_of, is_widening
from .operations import operation_of
from .reasons import Reason, joined
from .records import Activation, Affine, Convolution, Norm, Operation, Other, Passing, Root
from .upward import is_one_reader_of_many

_MAP = Reason("FiLM varies over positions: a kernel takes one gamma and beta per sample and channel")
_UNKNOWN = Reason("the shapes of FiLM's factors are not known: give example_inputs")
_TWO_ACTIVATIONS = Reason("two activations stand in front of FiLM")


class Chain:
    """What follows the root of a site, whose result has `spatial_rank` dimensions beside those of samples and channels.
    It ends before the first step that cannot be taken in once FiLM has been met; before that, such a step becomes a
    reason, beside the `reasons` that the root has, and the walk goes on to see whether a FiLM follows at all.

    A norm that is no scale and shift by itself begins anew: its site is norm_film's, whatever stands in front."""

    def __init__(
        self,
        root: Root,
        spatial_rank: int,
        factors: Factors,
        reasons: Sequence[Reason] = (),
        *,
        by_parameters: bool = False,
        channels: int = 1,
    ) -> None:
        self.root, self.rank, self.channels = root, spatial_rank, channels
        self.factors, self.by_parameters = factors, by_parameters
        self.result = tensor_of(root.node)
        self.front: list[Link] = []
        self.links: list[Link] = []
        self.film: fx.Node | None = None
        self.norm: Norm | None = None
        self.call: dict[str, Any] = {}
        self.normed = False
        self.reasons = [*reasons]
        if isinstance(root, Norm):
            self._begin(root)

    def match(self, without_film: bool = False) -> Match | None:
        """The chain as it stands; None where there is no FiLM in it, unless it may be `without_film`."""
        if self.film is None and not without_film:
            return None
        match = Match(
            self.root, tuple(self.links), self.film, None, self.by_parameters, tuple(self.front), self.norm, self.call
        )
        if not isinstance(self.root, Other) and CUT not in self.reasons:  # all of it is in this graph
            change = what_changes_between(match.nodes, _read_by(match), _written_by(self.call))
            self.reasons += [] if change is None else [Reason(change)]
        return replace(match, reason=joined(self.reasons))

    def follow(self, operations: Sequence[Operation]) -> None:
        """Take the `operations` on the way to FiLM, and what comes behind it."""
        node = self.root.node
        for operation in operations:
            if self.film is not None:
                break
            if not isinstance(self.root, Other) and is_one_reader_of_many(node, operation):
                self.reasons.append(self._used_elsewhere())
            if not self.take(operation):
                return
            node = operation.node
        while self.film is not None:
            readers = users_of_values(node)
            following = operation_of(readers[0], node) if len(readers) == 1 else None
            if following is None or not self.take(following):
                return
            node = following.node

    def descend(self) -> None:
        """Take what stands behind a norm, or a convolution without FiLM, up to the first activation, as far as nothing
        is against it."""
        node = self.root.node
        while activation_in(self.links) is None:
            readers = users_of_values(node)
            following = operation_of(readers[0], node) if len(readers) == 1 else None
            if following is None or (isinstance(following, Norm) and not self._folds(following)):
                return
            varies = any(not factor.is_of_all_samples for factor in self._factors_of(following))
            if varies and isinstance(self.root, Convolution):
                return  # a residual, say, or FiLM that something is against
            if self._why_not(following) or not self.take(following):
                return
            node = following.node

    def _begin(self, norm: Norm) -> None:
        """From here on the site is norm_film's. It computes in float32 itself, so that the norm may read what was
        converted to that."""
        self.front += [*self.links] if norm is self.root else [*self.links, Link(norm)]
        self.links, self.norm, self.result = [], norm, tensor_of(norm.node)
        self.normed = self.normed or not norm.is_batch_norm
        self.reasons = [CUT] if norm.node.graph is not self.root.node.graph else []
        call = call_of(norm, self.channels)
        if isinstance(call, Reason):
            self.reasons.append(call)
            return
        self.call = {**call, "input": before_widening(norm.source) or norm.source}

    def take(self, operation: Operation) -> bool:
        """Add `operation` to the chain; False where the chain ends before it."""
        met, activation = self.film is not None, activation_in(self.links)
        if met and activation is not None and film_position(self.links, self.by_parameters) == "pre":
            return False  # the activation behind FiLM was the last
        result = tensor_of(operation.node)
        if result is not None and self.result is not None and not same_shape(result, self.result):
            return False  # the convolution's result is itself what scales or shifts
        if isinstance(operation, Norm) and not self._folds(operation):
            if not met:
                self._begin(operation)
            return not met
        link = Link(operation, self._factors_of(operation))
        kinds = {factor.kind for factor in link.factors}
        if "other" in kinds:
            return False
        if kinds & {"map", "unknown"}:
            if not met and isinstance(self.root, Convolution):
                self._take_map(link)
            return False
        if "point" in kinds:
            if isinstance(self.root, Other) or (not met and self._scale_and_shift(link) is None):
                return False
            link = Link(operation, tuple(replace(f, kind="channel") if f.kind == "point" else f for f in link.factors))
        reasons = self._why_not(operation)
        if reasons and met:
            return False
        self.reasons += [] if isinstance(self.root, Other) else reasons
        self.links.append(link)
        if result is not None and self.norm is not None:
            self.result = result  # perhaps of another dtype
        if link.is_film(self.by_parameters) and not (self.by_parameters and self.normed):
            self.film = operation.node
        return True

    def _factors_of(self, operation: Operation) -> tuple[Factor, ...]:
        if not isinstance(operation, Affine):
            return ()
        return tuple(self.factors.of(value, self.result, self.rank, self.channels) for value in operation.values)

    def _take_map(self, link: Link) -> None:
        """A factor that varies over positions, or of a shape that is not known. The chain ends here."""
        pair = self._scale_and_shift(link)
        if pair is not None:
            self.links += pair
            self.film = pair[-1].operation.node
            unknown = any(factor.kind == "unknown" for factor in link.factors)
            self.reasons.append(_UNKNOWN if unknown else _MAP)

    def _scale_and_shift(self, link: Link) -> list[Link] | None:
        """`link` and what makes FiLM of it, where only a scale and a shift together are one: alone, a scale is a gate
        and a shift is a residual connection."""
        operation = link.operation
        if not isinstance(operation, Affine) or operation.scale is None:
            return None
        pair, shift = [link], operation.shift
        if shift is None:
            follower = shift_behind(operation)
            if follower is None:
                return None
            pair.append(Link(follower, self._factors_of(follower)))
            shift = follower.shift
        made_by_chain = not self.normed and is_made_by_chain(self.root.node, self.links, operation.scale, shift)
        return None if is_gate(operation.scale) or made_by_chain else pair

    def _folds(self, norm: Norm) -> bool:
        """Whether conv_film takes the norm in, as far as it takes anything."""
        return norm.folds and self.norm is None and (self.film is not None or not self.reasons)

    def _used_elsewhere(self) -> Reason:
        what = "convolution" if self.norm is None else "norm"
        return Reason(f"the {what}'s output is used elsewhere too, before FiLM: it would have to be computed twice")

    def _why_not(self, operation: Operation) -> list[Reason]:
        """Why no kernel takes `operation` in where it stands."""
        if self.norm is not None and self._is_computed_in_float32(operation):
            return []
        reasons = [] if operation.reason is None else [operation.reason]
        if isinstance(operation, Activation) and not reasons and activation_in(self.links) is not None:
            reasons.append(_TWO_ACTIVATIONS)
        result = tensor_of(operation.node)
        if operation.reason is None and result is not None and self.result is not None:
            before, what = self.result.dtype, "convolution" if self.norm is None else "norm"
            if result.dtype != before:
                why = f"FiLM makes {result.dtype} of the {what}'s {before}"
                reasons.append(Reason(f"{why}: bring gamma and beta to the {what}'s dtype"))
        return reasons

    def _is_computed_in_float32(self, operation: Operation) -> bool:
        """Whether all that `operation` does to the dtype is that 16 bits become float32, or float32 what the norm was
        given in 16 bits, before FiLM: norm_film computes in float32 in between."""
        result = tensor_of(operation.node)
        if not isinstance(operation, (Affine, Passing)) or result is None or self.result is None:
            return False
        if is_widening(self.result, result):
            return True
        given = tensor_of(self.call.get("input"))
        narrows = given is not None and given.dtype == result.dtype and is_widening(result, self.result)
        return narrows and isinstance(operation, Passing) and self.film is None


def _read_by(match: Match) -> list[tuple[Touched, fx.Node]]:
    """What the fused call reads at the end of the chain, with the node that has read it on the way."""
    found: list[tuple[Touched, fx.Node]] = []
    nodes = match.nodes
    if match.norm is None:
        assert isinstance(match.root, Convolution)
        found += [(value, match.root.node) for value in match.root.reads]
    else:
        found += [(value, node) for node in match.norm.nodes for value in node.all_input_nodes if value not in nodes]
        given = match.call.get("input", match.norm.source)
        found += [] if given is match.norm.source else [(given, match.norm.source)]
    for link in match.links:
        reader = link.operation.node
        for factor in link.factors:
            if isinstance(factor.value, fx.Node):
                found += [(factor.value, one) for one in (reader, *factor.copied_by)]
        found += [(value, reader) for value in link.operation.reads if value not in nodes]
    for node in nodes:
        module = module_of(node)
        if module is not None:
            found += [(tensor, node) for tensor in (*module.parameters(), *module.buffers())]
    return found


def _written_by(call: dict[str, Any]) -> list[Touched]:
    """What a call of norm_film writes into: the running statistics of a BatchNorm in training."""
    kept = [call.get(name) for name in ("running_mean", "running_var")] if call.get("training") else []
    return [one for one in kept if one is not None]
