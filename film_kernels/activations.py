"""The table of activations: formula, derivative, and the slopes that one bit an element chooses between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """One row of the table.

    A piecewise-linear activation is `act(v) = s * v`, where `s` is 1 on the upper branch, `!(v <= 0)`, and
    `lower_slope` on the other; so backward needs one bit an element.
    """

    name: str
    code: int  # what the compiled libraries know it by
    apply: Callable[..., Tensor]  # (v, negative_slope, inplace=False) -> act(v)
    gradient: Callable[[Tensor, Tensor, float], Tensor]  # (grad, v, negative_slope) -> grad * act'(v)
    lower_slope: Callable[[float], float]  # from negative_slope


ACTIVATIONS: dict[str, Activation] = {
    row.name: row
    for row in (
        Activation(
            "none",
            0,
            lambda v, negative_slope, inplace=False: v,
            lambda grad, v, negative_slope: grad,
            lambda negative_slope: 1.0,
        ),
        Activation(
            "relu",
            1,
            lambda v, negative_slope, inplace=False: F.relu(v, inplace),
            lambda grad, v, negative_slope: _aten.threshold_backward(grad, v, 0),
            lambda negative_slope: 0.0,
        ),
        Activation(
            "leaky_relu",
            2,
            lambda v, negative_slope, inplace=False: F.leaky_relu(v, negative_slope, inplace),
            lambda grad, v, negative_slope: _aten.leaky_relu_backward(grad, v, negative_slope, False),
            lambda negative_slope: negative_slope,
        ),
    )
}
FILM_POSITIONS: tuple[str, ...] = ("post", "pre")
