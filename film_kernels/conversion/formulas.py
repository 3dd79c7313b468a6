"""Which norm a few operations compute: they are run on a small tensor, beside the formulas that they may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from .factors import is_conversion_to_itself

_SIZES = (2, 3, 4, 5, 3)
_SCALES = (1.0, 1e-4)  # of the small tensor: one shows the formula, the other its eps
_HOMES = ("torch", "_operator")


def norm_written_as(
    start: fx.Node, nodes: Sequence[fx.Node], dims: tuple[int, ...], rank: int
) -> tuple[str | None, float | None]:
    """The kind ("rms", "l2", or "mean", for a norm that takes the mean away) and the eps of the norm over `dims` that
    `nodes` compute of the result of `start`, which has `rank` dimensions; (None, None) where they compute another: with
    an unbiased variance, say, or an eps that is added to the root."""
    numbers = [value for node in nodes for value in (*node.args, *node.kwargs.values()) if isinstance(value, float)]
    try:
        inputs = [scale * _small_tensor(rank) for scale in _SCALES]
        results = [_run(start, nodes, tensor) for tensor in inputs]
        for kind in ("rms", "l2", "mean"):
            for eps in (*numbers, 0.0):
                expected = [_norm(kind, tensor, dims, eps) for tensor in inputs]
                if all(torch.allclose(a, b, rtol=1e-9, atol=0) for a, b in zip(results, expected, strict=True)):
                    return kind, eps
    except Exception:  # sizes of the model's own, tensors from elsewhere
        return None, None
    return None, None


def _small_tensor(rank: int) -> Tensor:
    """The same at every call: random numbers are the user's."""
    sizes = _SIZES[:rank]
    numbers = torch.arange(1, 1 + torch.Size(sizes).numel(), dtype=torch.float64, device="cpu")
    return (2 * torch.sin(1.7 * numbers) + 0.3).reshape(sizes)


def _run(start: fx.Node, nodes: Sequence[fx.Node], tensor: Tensor) -> Tensor:
    values: dict[fx.Node, Any] = {start: tensor.clone()}
    with torch.no_grad():
        for node in nodes:
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            if is_conversion_to_itself(node):
                values[node] = args[0]
            elif node.op == "call_method":
                values[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            elif (getattr(node.target, "__module__", None) or "torch").partition(".")[0] in _HOMES:
                values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
            else:
                raise TypeError("a function of the user's is not run")
    return values[nodes[-1]]


def _norm(kind: str, x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    if kind == "l2":
        return x / torch.linalg.vector_norm(x, dim=dims, keepdim=True).clamp_min(eps)
    if kind == "mean":
        x = x - x.mean(dims, keepdim=True)
    return x * torch.rsqrt(x.square().mean(dims, keepdim=True) + eps)
