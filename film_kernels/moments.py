"""Sums, means and variances by the library, without the digits that its own lose on CPUs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def sums(tensor: Tensor, dims: Sequence[int]) -> Tensor:
    """With the dimensions kept. On the CPU, over dimensions of some strides, the library adds one element after another
    and loses digits: it gets contiguous ones, which it adds by halves."""
    if not dims:
        return tensor
    return (tensor.contiguous() if tensor.device.type == "cpu" else tensor).sum(tuple(dims), keepdim=True)


def means_and_variances(x: Tensor, dims: Sequence[int], count: int) -> Tensor:
    """(2, groups): over `dims`, which hold `count` elements; the variances with their bias.

    The library's `var_mean` adds float64 on the CPU one element after another, and loses digits (it adds float32 in
    float64). The mean of the deviations takes back the rounding of the mean, which is all that there is of them where
    the elements are nearly the same."""
    if x.device.type != "cpu" or x.dtype != torch.float64:
        variance, mean = torch.var_mean(x, tuple(dims), correction=0)
        return torch.stack((mean.flatten(), variance.flatten()))
    mean = sums(x, dims) / count
    deviation = x - mean
    rest = sums(deviation, dims) / count
    variance = sums((deviation - rest).square_(), dims) / count
    return torch.stack(((mean + rest).flatten(), variance.flatten()))
