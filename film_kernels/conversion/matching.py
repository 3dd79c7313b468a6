"""The matcher: from a convolution down the graph, through what a kernel can take in, to the end of its FiLM."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor, fx

from .factors import Factor, factor_of, tensor_of
from .hazards import what_changes_between
from .operations import Operation, convolution_of, operation_of

_SIZES = ("size", "dim", "ndimension", getattr)
_USED_ELSEWHERE = "the convolution's output is used elsewhere too, before FiLM: it would have to be computed twice"
_MAP = "FiLM varies over positions: a kernel takes one gamma and beta per sample and channel"


@dataclass
class Match:
    """A convolution and what follows it up to its FiLM, or up to the activation after that."""

    convolution: Operation
    before: list[tuple[Operation, tuple[Factor, ...]]] = field(default_factory=list)  # scales, shifts and BatchNorms
    activation: Operation | None = None
    after: list[tuple[Operation, tuple[Factor, ...]]] = field(default_factory=list)  # the same, behind the activation
    steps: list[Operation] = field(default_factory=list)  # everything in order
    film: fx.Node | None = None  # the last scale or shift of the FiLM
    reason: str | None = None  # why it cannot be fused

    @property
    def order(self) -> tuple[str, ...]:
        """The operations as found; a scale and a shift together are "film"."""
        names = [self.convolution.name]
        for step in self.steps:
            pair = {names[-1], step.name}
            if pair == {"scale", "shift"} and len(names) > 1:
                names[-1] = "film"
            else:
                names.append(step.name)
        return tuple(names)

    @property
    def nodes(self) -> list[fx.Node]:
        """From the convolution to the last one."""
        return [self.convolution.node, *(step.node for step in self.steps)]

    @property
    def film_position(self) -> str:
        """Where FiLM stands; where there is no activation, everything is before it."""
        return "pre" if any(_is_film(factors) for _, factors in self.before) else "post"


def matches(graph: fx.Graph) -> Iterator[Match]:
    """Every place in `graph` where a convolution's output meets FiLM, fusable or not, in the graph's order."""
    for node in graph.nodes:
        convolution = convolution_of(node)
        if convolution is None:
            continue
        match = _Walk(convolution).end()
        if match is not None:
            yield match


def _is_film(factors: tuple[Factor, ...]) -> bool:
    return any(factor.kind == "channel" for factor in factors)


def _users(node: fx.Node) -> list[fx.Node]:
    """Who needs the values of `node`: not those who ask for its shape, as `gamma.expand_as(x)` does."""
    return [
        user
        for user in node.users
        if not (user.target in _SIZES or (user.target == "expand_as" and user.args[0] is not node))
    ]


class _Walk:
    """One convolution's chain. It ends before the first step that cannot be taken in once FiLM has been met; before
    that, such a step becomes the reason, and the walk goes on to see whether a FiLM follows at all."""

    def __init__(self, convolution: Operation) -> None:
        self.match = Match(convolution)
        self.result = tensor_of(convolution.node)
        self.rank = int(convolution.name[-2])
        self.reason = _why_not(convolution, self.result)

    def end(self) -> Match | None:
        if self.result is not None and self.result.dim() != self.rank + 2:
            return None  # an input without a batch: there are no samples to modulate
        self._follow(self.match.convolution.node)
        match = self.match
        if match.film is None:
            return None
        match.reason = self.reason or what_changes_between(match.nodes, _read_by(match))
        return match

    def _follow(self, node: fx.Node) -> None:
        while True:
            users = _users(node)
            if len(users) > 1:
                if self.match.film is None:
                    self._follow_one_of(node, users)
                return
            step = operation_of(users[0], node) if users else None
            if step is None or not self._take(step, node):
                return
            node = step.node

    def _follow_one_of(self, node: fx.Node, users: list[fx.Node]) -> None:
        self.reason = self.reason or _USED_ELSEWHERE
        here = self.match
        for user in users:
            step = operation_of(user, node)
            self.match = Match(
                here.convolution, [*here.before], here.activation, [*here.after], [*here.steps], reason=here.reason
            )
            if step is not None and self._take(step, node):
                self._follow(step.node)
            if self.match.film is not None:
                return
        self.match = here

    def _take(self, step: Operation, passing: fx.Node) -> bool:
        """Add `step` to the chain; False where the chain ends before it."""
        match, met = self.match, self.match.film is not None
        if met and match.film_position == "pre" and match.activation is not None:
            return False  # the activation behind FiLM was the last
        reason: str | None = step.reason
        factors: tuple[Factor, ...] = ()
        if step.kind in ("scale", "shift", "affine"):
            factors = tuple(factor_of(value, self.result, self.rank) for value in step.factors)
            kinds = {factor.kind for factor in factors}
            if "other" in kinds:
                return False
            if kinds & {"map", "unknown"}:
                return not met and self._take_map(step, kinds)
        elif step.kind == "activation" and match.activation is not None:
            reason = "two activations stand between convolution and FiLM"
        reason = reason or self._why_not_that_dtype(step.node)
        if reason is not None and met:
            return False
        self.reason = self.reason or reason
        match.steps.append(step)
        if step.kind == "activation":
            match.activation = step
        elif step.kind == "batch_norm" or factors:
            (match.before if match.activation is None else match.after).append((step, factors))
            if _is_film(factors):
                match.film = step.node
        return True

    def _take_map(self, step: Operation, kinds: set[str]) -> bool:
        """A factor that varies over positions, or of a shape that is not known: FiLM only where a scale and a shift
        come together (alone, a scale is a gate and a shift is a residual connection). The chain ends here."""
        steps = [step]
        if step.kind == "scale":
            follower = next(iter(_users(step.node)), None)
            shift = operation_of(follower, step.node) if follower is not None else None
            if shift is not None and shift.kind == "shift":
                steps.append(shift)
        if step.kind == "affine" or len(steps) == 2:
            self.match.steps += steps
            self.match.film = steps[-1].node
            why = "the shapes of FiLM's factors are not known: give example_inputs" if "unknown" in kinds else _MAP
            self.reason = self.reason or why
        return False

    def _why_not_that_dtype(self, node: fx.Node) -> str | None:
        result = tensor_of(node)
        if result is None or self.result is None or result.dtype == self.result.dtype:
            return None
        return (
            f"FiLM makes {result.dtype} of the convolution's {self.result.dtype}: bring gamma and beta to the "
            "convolution's dtype"
        )


def _why_not(convolution: Operation, result: Tensor | None) -> str | None:
    if convolution.name.startswith("conv_transpose"):
        return "transposed convolutions have no kernel"
    if convolution.name == "conv3d":
        return "3d convolutions have no fused kernel, so nothing would be gained"
    if result is not None and not result.dtype.is_floating_point:
        return f"{result.dtype} has no fused kernel"
    return None


def _read_by(match: Match) -> list[fx.Node]:
    """What the fused call reads at the end of the chain, and the chain itself read before."""
    nodes = [value for value in match.convolution.arguments.values() if isinstance(value, fx.Node)]
    for step, factors in (*match.before, *match.after):
        nodes += [factor.value for factor in factors if isinstance(factor.value, fx.Node)]
        nodes += [value for value in step.arguments.values() if isinstance(value, fx.Node) and value not in match.nodes]
    return nodes
