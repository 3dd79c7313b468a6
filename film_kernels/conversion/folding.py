"""What stands in a graph in place of a chain: scales, shifts and BatchNorms folded together, then one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..functional import conv_film

Step = tuple[Any, ...]  # ("scale" | "shift" | "divide" | "subtract", factor) or ("batch_norm", mean, var, w, b, eps)
Rows = Tensor | float | None  # (N, K) or (1, K) or a number; None for nothing


def conv_steps_film(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    before: Sequence[Step],
    activation: str,
    negative_slope: float,
    after: Sequence[Step],
    film_position: str,
) -> Tensor:
    """`after(activation(before(convolution)))` by `film_kernels.conv_film`.

    Every step is `scale * v + shift` per channel, so the steps on either side of the activation compose to one such
    pair. With FiLM in front of the activation that pair is conv_film's gamma and beta. Otherwise what is in front is
    the same for all samples, and goes into weight and bias: `W' = scale * W`, `b' = scale * b + shift` (the folding
    of BatchNorm that `torch.nn.utils.fusion.fuse_conv_bn_weights` does once; here gradients go through it).
    """
    channels, dtype = weight.shape[0], input.dtype
    scale, shift = compose(before, weight.dim() - 2)
    if film_position == "post":
        if scale is not None:
            rows = _row(scale, channels, weight)
            weight = weight * rows.reshape(-1, *(1,) * (weight.dim() - 1)).to(weight.dtype)
            bias = None if bias is None else bias * rows.to(bias.dtype)
        if shift is not None:
            row = _row(shift, channels, weight).to(weight.dtype)
            bias = row if bias is None else bias + row
        scale, shift = compose(after, weight.dim() - 2)
    gamma, beta = (None if one is None else _rows(one, channels, weight).to(dtype) for one in (scale, shift))
    return conv_film(
        input, weight, bias, gamma, beta, stride, padding, dilation, groups,
        activation=activation, negative_slope=negative_slope, film_position=film_position,
    )  # fmt: skip


def compose(steps: Sequence[Step], spatial_rank: int) -> tuple[Rows, Rows]:
    """(scale, shift) of all `steps` together."""
    scale: Rows = None
    shift: Rows = None
    one_scale: Rows
    one_shift: Rows
    for kind, *values in steps:
        if kind == "batch_norm":
            one_scale, one_shift = _batch_norm(*values)
        else:
            value = _as_rows(values[0], spatial_rank)
            if kind in ("scale", "divide"):
                one_scale, one_shift = (value if kind == "scale" else 1 / value), None
            else:
                one_scale, one_shift = None, (value if kind == "shift" else -value)
        if one_scale is not None:
            scale = one_scale if scale is None else scale * one_scale
            shift = None if shift is None else shift * one_scale
        if one_shift is not None:
            shift = one_shift if shift is None else shift + one_shift
    return scale, shift


def _batch_norm(
    mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """(v - mean) / sqrt(var + eps) * weight + bias, as it is in eval."""
    scale = torch.rsqrt(var + eps)
    scale = scale if weight is None else scale * weight
    shift = -mean * scale
    shift = shift if bias is None else shift + bias
    return scale.unsqueeze(0), shift.unsqueeze(0)


def _as_rows(factor: Tensor | float, spatial_rank: int) -> Tensor | float:
    """A factor that broadcasts against (N, K, *out) without varying over positions, as (N | 1, K | 1)."""
    if not isinstance(factor, Tensor):
        return factor
    missing = spatial_rank + 2 - factor.dim()
    return factor.reshape((1,) * missing + tuple(factor.shape)).flatten(1) if missing > 0 else factor.flatten(1)


def _rows(rows: Tensor | float, channels: int, like: Tensor) -> Tensor:
    """(N | 1, K)."""
    if not isinstance(rows, Tensor):
        return like.new_full((1, channels), rows)
    return rows.expand(rows.shape[0], channels)


def _row(rows: Tensor | float, channels: int, like: Tensor) -> Tensor:
    """(K,), of what is the same for all samples."""
    return _rows(rows, channels, like)[0]
