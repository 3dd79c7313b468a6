"""The matcher: from a convolution down the graph, through what a kernel can take in, to the end of its FiLM."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from torch import Tensor, fx

from .crossings import CUT, crossing_of
from .effects import Touched
from .factors import Factor, factor_of
from .hazards import name_changed_values, what_changes_between
from .maps import is_gate, is_made_by_chain
from .nodes import module_of, note_buffers, same_shape, tensor_of, users_of_values
from .operations import convolution_of, operation_of
from .reasons import Reason, joined
from .records import Activation, Affine, Convolution, Norm, Operation
from .written_norms import written_norm

_USED_ELSEWHERE = Reason(
    "the convolution's output is used elsewhere too, before FiLM: it would have to be computed twice"
)
_MAP = Reason("FiLM varies over positions: a kernel takes one gamma and beta per sample and channel")
_UNKNOWN = Reason("the shapes of FiLM's factors are not known: give example_inputs")
_TWO_ACTIVATIONS = Reason("two activations stand between convolution and FiLM")

Folded = list[tuple[Operation, tuple[Factor, ...]]]  # scales, shifts and BatchNorms


@dataclass
class Match:
    """A convolution and what follows it up to its FiLM, or up to the activation after that.

    FiLM is a scale or shift that comes with the call of the model. Where there is none, a scale by parameters counts:
    gamma may have been chosen by the name of a task, which the graph does not tell. Behind a norm such a scale is the
    norm's own, and a shift by parameters alone is a bias."""

    root: Convolution
    by_parameters: bool = False  # whether a scale by parameters counts
    before: Folded = field(default_factory=list)
    activation: Activation | None = None
    after: Folded = field(default_factory=list)  # behind the activation
    steps: Folded = field(default_factory=list)  # everything in order
    film: fx.Node | None = None  # the last scale or shift of the FiLM
    reasons: list[Reason] = field(default_factory=list)

    @property
    def reason(self) -> Reason | None:
        """Why it cannot be fused; None where it can."""
        return joined(self.reasons)

    @property
    def norm(self) -> Norm | None:
        """The first norm that needs statistics, if there is one."""
        norms = (step for step, _ in self.steps if isinstance(step, Norm))
        return next((norm for norm in norms if not norm.is_batch_norm), None)

    @property
    def order(self) -> tuple[str, ...]:
        """The operations as found; a scale and a shift together, one of them FiLM's, are "film"."""
        names, pairs = [self.root.name], [(False, False)]
        for step, factors in self.steps:
            film = self.is_film(factors, step)
            own = not self.by_parameters and any(factor.kind in ("learnt", "fixed") for factor in factors)
            together = {names[-1], step.name} == {"scale", "shift"} and not pairs[-1][1]
            if together and (film or pairs[-1][0]):
                names[-1] = "film"
            elif step.name:
                names.append(step.name)
                pairs.append((film, own))
        return tuple(names)

    @property
    def nodes(self) -> list[fx.Node]:
        """From the convolution to the last one."""
        return [self.root.node, *(step.node for step, _ in self.steps)]

    @property
    def film_position(self) -> str:
        """Where FiLM stands; where there is no activation, everything is before it."""
        return "pre" if any(self.is_film(factors, step) for step, factors in self.before) else "post"

    def is_film(self, factors: tuple[Factor, ...], step: Operation) -> bool:
        """Whether `step` with its `factors` is FiLM."""
        kinds = {factor.kind for factor in factors}
        by_parameters = self.by_parameters and "learnt" in kinds and isinstance(step, Affine) and step.scale is not None
        return by_parameters or not kinds.isdisjoint(("channel", "map", "unknown"))


def matches(graph: fx.Graph) -> Iterator[Match]:
    """Every place in `graph` where a convolution's output meets FiLM, fusable or not, in the graph's order."""
    note_buffers(graph)
    name_changed_values(graph)
    for node in graph.nodes:
        crossing = crossing_of(node)
        convolution, steps = crossing or (convolution_of(node), [])
        if convolution is None:
            continue
        match = _Walk(convolution, steps, False).end() or _Walk(convolution, steps, True).end()
        if match is not None:
            yield match


class _Walk:
    """One convolution's chain. It ends before the first step that cannot be taken in once FiLM has been met; before
    that, such a step becomes a reason, and the walk goes on to see whether a FiLM follows at all."""

    def __init__(self, convolution: Convolution, steps: list[Operation], by_parameters: bool) -> None:
        self.match = Match(convolution, by_parameters)
        self.result = tensor_of(convolution.node)
        self.rank = convolution.rank
        self.normed = False
        self.match.reasons += _why_not(convolution, self.result)
        for step in steps:  # in another graph
            self._take(step)

    def end(self) -> Match | None:
        if self.result is not None and self.result.dim() != self.rank + 2:
            return None  # an input without a batch: there are no samples to modulate
        self._follow(self.match.root.node)
        match = self.match
        if match.film is None:
            return None
        if not match.root.cut:  # all of it is in this graph
            change = what_changes_between(match.nodes, _read_by(match))
            match.reasons += [] if change is None else [Reason(change)]
        return match

    def _follow(self, node: fx.Node) -> None:
        while True:
            users = users_of_values(node)
            step = operation_of(users[0], node) if len(users) == 1 else None
            if step is None and self.match.film is None:
                step = written_norm(node)
            if step is None and len(users) > 1 and self.match.film is None:
                self._follow_one_of(node, users)
            if step is None or not self._take(step):
                return
            node = step.node

    def _follow_one_of(self, node: fx.Node, users: list[fx.Node]) -> None:
        here, normed = self.match, self.normed
        for user in users:
            step = operation_of(user, node)
            self.normed = normed
            self.match = Match(
                here.root, here.by_parameters, [*here.before], here.activation, [*here.after], [*here.steps],
                reasons=[*here.reasons, _USED_ELSEWHERE],
            )  # fmt: skip
            if step is not None and self._take(step):
                self._follow(step.node)
            if self.match.film is not None:
                return
        self.match = here

    def _take(self, step: Operation) -> bool:
        """Add `step` to the chain; False where the chain ends before it."""
        match, met = self.match, self.match.film is not None
        if met and match.film_position == "pre" and match.activation is not None:
            return False  # the activation behind FiLM was the last
        result = tensor_of(step.node)
        if result is not None and self.result is not None and not same_shape(result, self.result):
            return False  # the convolution's result is itself what scales or shifts
        reasons = [] if step.reason is None else [step.reason]
        factors: tuple[Factor, ...] = ()
        if isinstance(step, Affine):
            factors = tuple(factor_of(value, self.result, self.rank) for value in step.values)
            kinds = {factor.kind for factor in factors}
            if "other" in kinds:
                return False
            if kinds & {"map", "unknown"}:
                return not met and self._take_map(step, factors)
            if "point" in kinds:
                if not met and self._pair(step, factors) is None:
                    return False
                factors = tuple(replace(one, kind="channel") if one.kind == "point" else one for one in factors)
        elif isinstance(step, Activation) and step.reason is None and match.activation is not None:
            reasons.append(_TWO_ACTIVATIONS)
        reasons += self._why_not_that_dtype(step)
        if reasons and met:
            return False
        match.reasons += reasons
        match.steps.append((step, factors))
        if isinstance(step, Activation) and step.reason is None:
            match.activation = match.activation or step
        elif factors or (isinstance(step, Norm) and step.reason is None):
            (match.before if match.activation is None else match.after).append((step, factors))
        self.normed = self.normed or (isinstance(step, Norm) and not step.is_batch_norm)
        if match.is_film(factors, step) and not (match.by_parameters and self.normed):
            match.film = step.node
        return True

    def _take_map(self, step: Affine, factors: tuple[Factor, ...]) -> bool:
        """A factor that varies over positions, or of a shape that is not known. The chain ends here."""
        pair = self._pair(step, factors)
        if pair is not None:
            self.match.steps += pair
            self.match.film = pair[-1][0].node
            unknown = any(factor.kind == "unknown" for factor in factors)
            self.match.reasons.append(_UNKNOWN if unknown else _MAP)
        return False

    def _pair(self, step: Affine, factors: tuple[Factor, ...]) -> list[tuple[Affine, tuple[Factor, ...]]] | None:
        """`step` and what makes FiLM of it, where only a scale and a shift together are one: alone, a scale is a gate
        and a shift is a residual connection."""
        pair: list[tuple[Affine, tuple[Factor, ...]]] = [(step, factors)]
        if isinstance(step, Affine) and step.name == "scale":
            follower = next(iter(users_of_values(step.node)), None)
            shift = operation_of(follower, step.node) if follower is not None else None
            if isinstance(shift, Affine) and shift.name == "shift":
                pair.append((shift, tuple(factor_of(value, self.result, self.rank) for value in shift.values)))
        if step.name != "film" and len(pair) < 2:
            return None
        scale, shift_by = step.scale, pair[-1][0].shift
        made_by_chain = not self.normed and is_made_by_chain(self.match.root.node, self.match.steps, scale, shift_by)
        return None if is_gate(scale) or made_by_chain else pair

    def _why_not_that_dtype(self, step: Operation) -> list[Reason]:
        result = tensor_of(step.node)
        if step.reason is not None or result is None or self.result is None or result.dtype == self.result.dtype:
            return []
        why = f"FiLM makes {result.dtype} of the convolution's {self.result.dtype}"
        return [Reason(f"{why}: bring gamma and beta to the convolution's dtype")]


def _why_not(convolution: Convolution, result: Tensor | None) -> list[Reason]:
    reasons = [CUT] if convolution.cut else []
    if convolution.transposed:
        reasons.append(Reason("transposed convolutions have no kernel"))
    elif convolution.rank == 3:
        reasons.append(Reason("3d convolutions have no fused kernel, so nothing would be gained"))
    elif result is not None and not result.dtype.is_floating_point:
        reasons.append(Reason(f"{result.dtype} has no fused kernel"))
    return reasons


def _read_by(match: Match) -> list[tuple[Touched, fx.Node]]:
    """What the fused call reads at the end of the chain, with the node that has read it on the way."""
    convolution = match.root
    found: list[tuple[Touched, fx.Node]] = [(value, convolution.node) for value in convolution.reads]
    nodes = match.nodes
    for step, factors in match.steps:
        for factor in factors:
            if isinstance(factor.value, fx.Node):
                found += [(factor.value, reader) for reader in (step.node, *factor.copied_by)]
        values = [value for value in step.reads if value not in nodes]
        found += [(value, step.node) for value in values]
    for node in nodes:
        module = module_of(node)
        if module is not None:
            found += [(tensor, node) for tensor in (*module.parameters(), *module.buffers())]
    return found
