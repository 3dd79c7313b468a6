"""The table of activations: formula, derivative, and the slopes that one bit an element chooses between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_aten = torch.ops.aten


def _no_slope(negative_slope: float) -> float:
    raise ValueError("a smooth activation has no slope that one bit could choose")


@dataclass(frozen=True)
class Activation:
    """One row of the table.

    A piecewise-linear activation is `act(v) = s * v`, where `s` is 1 on the upper branch, `!(v <= 0)`, and
    `lower_slope` on the other; so backward needs one bit an element. A smooth one needs `v` itself, for which
    `z = conv(input, weight) + bias` is kept.
    """

    name: str
    apply: Callable[..., Tensor]  # (v, negative_slope, inplace=False) -> act(v)
    gradient: Callable[[Tensor, Tensor, float], Tensor]  # (grad, v, negative_slope) -> grad * act'(v)
    one_bit: bool = False  # piecewise linear: one bit an element is enough for backward
    lower_slope: Callable[[float], float] = _no_slope  # from negative_slope, where one bit is enough


ACTIVATIONS: dict[str, Activation] = {
    row.name: row
    for row in (
        Activation(
            "none",
            lambda v, negative_slope, inplace=False: v,
            lambda grad, v, negative_slope: grad,
            one_bit=True,
            lower_slope=lambda negative_slope: 1.0,
        ),
        Activation(
            "relu",
            lambda v, negative_slope, inplace=False: F.relu(v, inplace),
            lambda grad, v, negative_slope: _aten.threshold_backward(grad, v, 0),
            one_bit=True,
            lower_slope=lambda negative_slope: 0.0,
        ),
        Activation(
            "leaky_relu",
            lambda v, negative_slope, inplace=False: F.leaky_relu(v, negative_slope, inplace),
            lambda grad, v, negative_slope: _aten.leaky_relu_backward(grad, v, negative_slope, False),
            one_bit=True,
            lower_slope=lambda negative_slope: negative_slope,
        ),
        Activation(
            "silu",
            lambda v, negative_slope, inplace=False: F.silu(v, inplace),
            lambda grad, v, negative_slope: _aten.silu_backward(grad, v),
        ),
        Activation(
            "gelu",
            lambda v, negative_slope, inplace=False: F.gelu(v),
            lambda grad, v, negative_slope: _aten.gelu_backward(grad, v),
        ),
        Activation(
            "gelu_tanh",
            lambda v, negative_slope, inplace=False: F.gelu(v, approximate="tanh"),
            lambda grad, v, negative_slope: _aten.gelu_backward(grad, v, approximate="tanh"),
        ),
        Activation(
            "sigmoid",
            lambda v, negative_slope, inplace=False: v.sigmoid_() if inplace else v.sigmoid(),
            lambda grad, v, negative_slope: _aten.sigmoid_backward(grad, v.sigmoid()),
        ),
        Activation(
            "tanh",
            lambda v, negative_slope, inplace=False: v.tanh_() if inplace else v.tanh(),
            lambda grad, v, negative_slope: _aten.tanh_backward(grad, v.tanh()),
        ),
        Activation(
            "mish",
            lambda v, negative_slope, inplace=False: F.mish(v, inplace),
            lambda grad, v, negative_slope: _aten.mish_backward(grad, v),
        ),
        Activation(
            "elu",
            lambda v, negative_slope, inplace=False: F.elu(v, inplace=inplace),
            lambda grad, v, negative_slope: _aten.elu_backward(grad, 1, 1, 1, False, v),
        ),
    )
}
CODES = {name: code for code, name in enumerate(ACTIVATIONS)}  # what the compiled libraries know them by
FILM_POSITIONS: tuple[str, ...] = ("post", "pre")


def why_not_one_bit(activation: str) -> str | None:
    """Why a kernel that keeps one bit an element cannot serve `activation`, or None."""
    if ACTIVATIONS[activation].one_bit:
        return None
    served = ", ".join(name for name, row in ACTIVATIONS.items() if row.one_bit)
    return f"it keeps one bit an element, which is enough for {served}, not for the smooth {activation}"
