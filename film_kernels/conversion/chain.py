"""From what a site begins with down to the end of its FiLM: what can be fused, and why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import fx

from .effects import Touched
from .factors import Factor, Factors
from .films import shift_behind
from .hazards import what_changes_between
from .maps import is_gate, is_made_by_chain
from .match import Link, Match, activation_in, film_position
from .nodes import module_of, same_shape, tensor_of, users_of_values
from .operations import operation_of
from .reasons import Reason, joined
from .records import Activation, Affine, Convolution, Norm, Operation, Root
from .upward import is_one_reader_of_many

_USED_ELSEWHERE = Reason(
    "the convolution's output is used elsewhere too, before FiLM: it would have to be computed twice"
)
_MAP = Reason("FiLM varies over positions: a kernel takes one gamma and beta per sample and channel")
_UNKNOWN = Reason("the shapes of FiLM's factors are not known: give example_inputs")
_TWO_ACTIVATIONS = Reason("two activations stand between convolution and FiLM")


class Chain:
    """What follows the root of a site, whose result has `spatial_rank` dimensions beside those of samples and channels.
    It ends before the first step that cannot be taken in once FiLM has been met; before that, such a step becomes a
    reason, beside the `reasons` that the root has, and the walk goes on to see whether a FiLM follows at all."""

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
        self.links: list[Link] = []
        self.film: fx.Node | None = None
        self.normed = isinstance(root, Norm)
        self.reasons = [*reasons]

    def match(self) -> Match | None:
        """The chain as it stands; None where there is no FiLM in it."""
        if self.film is None:
            return None
        match = Match(self.root, tuple(self.links), self.film, None, self.by_parameters)
        if isinstance(self.root, Convolution) and not self.root.cut:  # all of it is in this graph
            change = what_changes_between(match.nodes, _read_by(self.root, match))
            self.reasons += [] if change is None else [Reason(change)]
        return replace(match, reason=joined(self.reasons))

    def follow(self, operations: Sequence[Operation]) -> None:
        """Take the `operations` on the way to FiLM, and what comes behind it."""
        node = self.root.node
        for operation in operations:
            if self.film is not None:
                break
            if isinstance(self.root, Convolution) and is_one_reader_of_many(node, operation):
                self.reasons.append(_USED_ELSEWHERE)
            if not self.take(operation):
                return
            node = operation.node
        while self.film is not None:
            readers = users_of_values(node)
            following = operation_of(readers[0], node) if len(readers) == 1 else None
            if following is None or not self.take(following):
                return
            node = following.node

    def take(self, operation: Operation) -> bool:
        """Add `operation` to the chain; False where the chain ends before it."""
        met, activation = self.film is not None, activation_in(self.links)
        if met and activation is not None and film_position(self.links, self.by_parameters) == "pre":
            return False  # the activation behind FiLM was the last
        result = tensor_of(operation.node)
        if result is not None and self.result is not None and not same_shape(result, self.result):
            return False  # the convolution's result is itself what scales or shifts
        link = Link(operation, self._factors_of(operation))
        kinds = {factor.kind for factor in link.factors}
        if "other" in kinds:
            return False
        if kinds & {"map", "unknown"}:
            if not met and isinstance(self.root, Convolution):
                self._take_map(link)
            return False
        if "point" in kinds:
            if not isinstance(self.root, Convolution) or (not met and self._scale_and_shift(link) is None):
                return False
            link = Link(operation, tuple(replace(f, kind="channel") if f.kind == "point" else f for f in link.factors))
        reasons = [] if operation.reason is None else [operation.reason]
        if isinstance(operation, Activation) and operation.reason is None and activation is not None:
            reasons.append(_TWO_ACTIVATIONS)
        reasons += self._why_not_that_dtype(operation)
        if reasons and met:
            return False
        self.reasons += reasons if isinstance(self.root, Convolution) else []
        self.links.append(link)
        self.normed = self.normed or (isinstance(operation, Norm) and not operation.is_batch_norm)
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

    def _why_not_that_dtype(self, operation: Operation) -> list[Reason]:
        result = tensor_of(operation.node)
        if operation.reason is not None or result is None or self.result is None or result.dtype == self.result.dtype:
            return []
        why = f"FiLM makes {result.dtype} of the convolution's {self.result.dtype}"
        return [Reason(f"{why}: bring gamma and beta to the convolution's dtype")]


def _read_by(convolution: Convolution, match: Match) -> list[tuple[Touched, fx.Node]]:
    """What the fused call reads at the end of the chain, with the node that has read it on the way."""
    found: list[tuple[Touched, fx.Node]] = [(value, convolution.node) for value in convolution.reads]
    nodes = match.nodes
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
