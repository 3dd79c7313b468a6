"""The running statistics of norm="batch", as `torch.nn.functional.batch_norm` keeps them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import scripted
from .checks import check_types, finite, in_words
from .moments import means_and_variances
from .problems.norm_film import NormFilm


class Statistics(NamedTuple):
    """What a caller says of them. Only norm="batch" has any."""

    mean: Tensor | None  # (C,), and so the next
    variance: Tensor | None
    training: bool
    momentum: float

    @property
    def are_kept(self) -> bool:
        """Whether a call in training has something to write them to."""
        return self.mean is not None or self.variance is not None

    def check(self, norm: Any, input: Tensor) -> None:
        """Raise TypeError or ValueError naming the argument where the call cannot be served."""
        named = (("running_mean", self.mean), ("running_var", self.variance))
        if norm != "batch":
            for name, tensor in named:
                if tensor is not None:
                    raise ValueError(f"{name} must be None for norm={norm!r}")
            return
        for name, tensor in named:
            _check(name, tensor, input)
        if not self.training and (self.mean is None or self.variance is None):
            raise ValueError("running_mean and running_var must be given for norm='batch' with training=False")
        if self.training and self.are_kept:
            finite("momentum", self.momentum)
        if self.training and input.dim() > 1 and input.shape[1] > 0 and input.numel() == input.shape[1]:
            raise ValueError(
                f"input must have more than one value for each channel in training, got {in_words(input.shape)}"
            )

    def without_mean(self, input: Tensor) -> tuple[Tensor, Statistics]:
        """The input (N, C, *spatial) with the mean taken from it, and the statistics of that."""
        mean = _wide(self.mean).to(input.dtype)
        return input - mean.view(-1, *(1,) * (input.dim() - 2)), self._replace(mean=torch.zeros_like(mean))

    def folded(
        self, dtype: torch.dtype, eps: float, weight: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The scale and shift for each channel, in `dtype`, that stand for the normalisation by the running statistics
        and the affine after it."""
        mean, variance = _wide(self.mean), _wide(self.variance)
        if dtype == torch.float64:
            mean, variance = mean.double(), variance.double()
        scale = torch.rsqrt(variance + eps)
        if weight is not None:
            scale = scale * weight
        shift = -mean * scale
        return scale.to(dtype), (shift if bias is None else shift + bias).to(dtype)

    def update(self, problem: NormFilm, found: Tensor) -> None:
        """Write what a batch had, (2, C) with means and variances, into them. The variance is written without its
        bias."""
        count = problem.group_size
        if count == 0:
            return
        unbiased = found[1] * (count / (count - 1))
        for kept, value in ((self.mean, found[0]), (self.variance, unbiased)):
            if kept is not None:
                kept.copy_(_wide(kept) * (1 - self.momentum) + value * self.momentum)  # rounded once


def of_layer(layer: nn.modules.batchnorm._BatchNorm) -> Statistics:
    """What a layer says of them at a call, which it counts where its mode is that of training."""
    return Statistics(
        *scripted.running_statistics(
            layer.training, layer.track_running_stats, layer.momentum,
            layer.num_batches_tracked, layer.running_mean, layer.running_var,
        )
    )  # fmt: skip


def statistics_of(problem: NormFilm, input: Tensor) -> Tensor:
    """(2, C): the means and variances of a batch, for kernels that do not tell them."""
    x = input.detach().to(problem.accumulates_in)
    return means_and_variances(x, [d for d in range(x.dim()) if d != 1], problem.group_size)


def _wide(tensor: Tensor | None) -> Tensor:
    assert tensor is not None  # checked
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _check(name: str, tensor: Any, input: Tensor) -> None:
    if tensor is None:
        return
    check_types((name,), (tensor,), 1)
    if tuple(tensor.shape) != tuple(input.shape[1:2]):
        raise ValueError(f"{name} must have shape (C,) = {in_words(input.shape[1:2])}, got {in_words(tensor.shape)}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {tensor.dtype}")
    if tensor.device != input.device:
        raise ValueError(f"{name} must be on the device of input, {input.device}, got {tensor.device}")
