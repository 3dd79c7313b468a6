"""Which of the two factors of a product that varies over positions is modulated, and which is the modulation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from .match import Link
from .nodes import word_of
from .norms import is_norm
from .operations import convolution_of
from .records import Affine

_GATES = ("sigmoid", "hardsigmoid", "softmax")
_FAR = 8  # operations upwards


def is_made_by_chain(convolution: fx.Node, links: Sequence[Link], scale: Any, shift: Any) -> bool:
    """Whether `convolution`, with `links` behind it and no norm, makes gamma in `gamma * scale + shift`, and is not
    what is modulated. It makes gamma where it is brought around 1, `1 + conv(c)`, or to a gate; where beta comes from a
    convolution of the same tensor; and where what it multiplies has been normalised."""
    if links:
        last = links[-1].operation
        around_a_number = isinstance(last, Affine) and last.name == "shift" and links[-1].factors[0].kind == "constant"
        if last.name in _GATES or around_a_number:
            return True
    source = _above(shift, lambda node: convolution_of(node) is not None)
    if source is not None and source.all_input_nodes[:1] == convolution.all_input_nodes[:1]:
        return True
    return _above(scale, is_norm) is not None


def is_gate(scale: Any) -> bool:
    """Whether a factor that varies over positions opens and closes, and modulates nothing: the result of a sigmoid."""
    return isinstance(scale, fx.Node) and word_of(scale) in _GATES


def _above(value: Any, is_it: Any) -> fx.Node | None:
    """The node nearest above `value`, by way of first arguments, that `is_it`."""
    for _ in range(_FAR):
        if not isinstance(value, fx.Node):
            return None
        if is_it(value):
            return value
        value = next(iter(value.all_input_nodes), None)
    return None
