"""Which norm a few operations compute: they are run on a small tensor, beside the formulas that they may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from .factors import is_conversion_to_itself
from .norm_calls import before_widening

_SIZES = (2, 3, 4, 5, 6)
_SCALES = (1.0, 1e-4, 1e8)  # of the small tensor: the first shows the formula, the others its eps and its limits
_HOMES = ("torch", "_operator", "einops")
_MOST_NUMBERS = 2**24


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


def is_norm_of(start: fx.Node, nodes: Sequence[fx.Node], inner: fx.Node, dims: tuple[int, ...], of: Tensor) -> bool:
    """Whether `nodes` do nothing but bring the result of `start`, which is like `of`, to another layout for `inner`, a
    norm over the last dimension, and back, so that it is one over `dims`. Views may hold sizes of the model's own, with
    which only a tensor of that size can be run."""
    for sizes in (_SIZES[: of.dim()], tuple(of.shape)):
        if not all(isinstance(size, int) for size in sizes) or torch.Size(sizes).numel() > _MOST_NUMBERS:
            continue
        tensor = _numbers(sizes)
        try:
            result = _run(start, nodes, tensor, {inner: lambda x: x - x.mean(-1, keepdim=True)})
        except Exception:
            continue
        expected = tensor - tensor.mean(dims, keepdim=True)
        return result.shape == expected.shape and torch.allclose(result, expected, rtol=1e-9, atol=1e-9)
    return False


def _small_tensor(rank: int) -> Tensor:
    return _numbers(_SIZES[:rank])


def _numbers(sizes: Sequence[int]) -> Tensor:
    """The same at every call: random numbers are the user's."""
    numbers = torch.arange(1, 1 + torch.Size(sizes).numel(), dtype=torch.float64, device="cpu")
    return (2 * torch.sin(1.7 * numbers) + 0.3).reshape(sizes)


def _run(
    start: fx.Node,
    nodes: Sequence[fx.Node],
    tensor: Tensor,
    instead: Mapping[fx.Node, Callable[[Tensor], Tensor]] = MappingProxyType({}),
) -> Tensor:
    values: dict[fx.Node, Any] = {start: tensor.clone()}
    with torch.no_grad():
        for node in nodes:
            if node in instead:
                values[node] = instead[node](values[node.all_input_nodes[0]])
                continue
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            if is_conversion_to_itself(node) or before_widening(node) is not None:
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
