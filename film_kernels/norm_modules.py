"""The layers of norm_film: each is the normalisation of PyTorch whose checkpoints it loads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import functional, running, scripted
from .film_options import FilmOptions


class NormFiLM(FilmOptions, nn.GroupNorm):
    """An `nn.GroupNorm` whose forward is normalisation, FiLM and activation in one operator.

    Same constructor, initialisation and state_dict as `nn.GroupNorm`, so a checkpoint of the layer it replaces loads
    unchanged; with as many groups as channels also one of an `nn.InstanceNorm1d`, `2d` or `3d` without running
    statistics (`affine=False` is their default). The options after `*` are those of `film_kernels.norm_film`.

    Raises:
        ValueError: an unknown `activation` or `film_position`, or what `nn.GroupNorm` raises.
        TypeError: `negative_slope` or `gamma_offset` is not a number.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "silu",
        negative_slope: float = 0.01,
        film_position: str = "pre",
        gamma_offset: float = 0.0,
    ) -> None:
        super().__init__(num_groups, num_channels, eps, affine, device, dtype)
        self._set_options(activation, negative_slope, film_position, gamma_offset)

    def forward(self, x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
        """x (N, C, *spatial); gamma and beta (N, C), (1, C), (C,), (N, C, 1, ...) or None (1 and 0).

        Returns the shape of x. Raises as `film_kernels.norm_film` does."""
        if not torch.jit.is_scripting():
            return functional.norm_film(
                x, "group", self.num_groups, self.weight, self.bias, gamma, beta, eps=self.eps,
                activation=self.activation, negative_slope=self.negative_slope,
                film_position=self.film_position, gamma_offset=self.gamma_offset,
            )  # fmt: skip
        z = F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        return scripted.activation_and_film(
            z, False, gamma, beta, self.activation, self.negative_slope, self.film_position, self.gamma_offset
        )


class BatchNormFiLM(FilmOptions, nn.modules.batchnorm._BatchNorm):
    """An `nn.BatchNorm1d`, `2d` or `3d` whose forward is normalisation, FiLM and activation in one operator.

    Constructor, initialisation, state_dict, running statistics and the meaning of `train()` and `eval()` are theirs. As
    theirs, its statistics are those of one process: `nn.SyncBatchNorm` has no counterpart here. The options after `*`
    are those of `film_kernels.norm_film`.

    Raises:
        ValueError: an unknown `activation` or `film_position`.
        TypeError: `negative_slope` or `gamma_offset` is not a number.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "silu",
        negative_slope: float = 0.01,
        film_position: str = "pre",
        gamma_offset: float = 0.0,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self._set_options(activation, negative_slope, film_position, gamma_offset)

    def _check_input_dim(self, input: Tensor) -> None:
        """norm_film does that."""

    def forward(self, x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
        """x (N, C, *spatial); gamma and beta (N, C), (1, C), (C,), (N, C, 1, ...) or None (1 and 0).

        Returns the shape of x. Raises as `film_kernels.norm_film` does."""
        if not torch.jit.is_scripting():
            mean, variance, training, momentum = running.of_layer(self)
            return functional.norm_film(
                x, "batch", None, self.weight, self.bias, gamma, beta, eps=self.eps,
                activation=self.activation, negative_slope=self.negative_slope,
                film_position=self.film_position, gamma_offset=self.gamma_offset,
                running_mean=mean, running_var=variance, training=training, momentum=momentum,
            )  # fmt: skip
        running_mean, running_var, trains, factor = scripted.running_statistics(
            self.training, self.track_running_stats, self.momentum,
            self.num_batches_tracked, self.running_mean, self.running_var,
        )  # fmt: skip
        z = F.batch_norm(x, running_mean, running_var, self.weight, self.bias, trains, factor, self.eps)
        return scripted.activation_and_film(
            z, False, gamma, beta, self.activation, self.negative_slope, self.film_position, self.gamma_offset
        )


class LayerNormFiLM(FilmOptions, nn.LayerNorm):
    """An `nn.LayerNorm` over the channels whose forward is normalisation, FiLM and activation in one operator.

    Same constructor, initialisation and state_dict as `nn.LayerNorm` of one size. The channels come last, as for
    `nn.LayerNorm`; with `channel_dim=1` they are those of (N, C, *spatial). The other options after `*` are those of
    `film_kernels.norm_film`.

    Raises:
        ValueError: an unknown `activation`, `film_position` or `channel_dim`, or a `normalized_shape` of several sizes.
        TypeError: `negative_slope` or `gamma_offset` is not a number.
    """

    def __init__(
        self,
        normalized_shape: int | list[int] | torch.Size,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "silu",
        negative_slope: float = 0.01,
        film_position: str = "pre",
        gamma_offset: float = 0.0,
        channel_dim: int = -1,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)
        self._set_options(activation, negative_slope, film_position, gamma_offset)
        self.channel_dim = _over_channels(self.normalized_shape, channel_dim)

    def forward(self, x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
        """x (N, *spatial, C), gamma and beta (N, C), (1, C), (C,), (N, 1, ..., C) or None (1 and 0); with
        `channel_dim=1` x (N, C, *spatial) and (N, C, 1, ...).

        Returns the shape of x. Raises as `film_kernels.norm_film` does."""
        if not torch.jit.is_scripting():
            return functional.norm_film(
                x, "channel", None, self.weight, self.bias, gamma, beta, eps=self.eps,
                activation=self.activation, negative_slope=self.negative_slope, film_position=self.film_position,
                gamma_offset=self.gamma_offset, channel_dim=self.channel_dim,
            )  # fmt: skip
        last = x if self.channel_dim == -1 else x.movedim(1, -1)
        z = F.layer_norm(last, self.normalized_shape, self.weight, self.bias, self.eps)
        return scripted.over_channels(
            z, self.channel_dim, gamma, beta,
            self.activation, self.negative_slope, self.film_position, self.gamma_offset,
        )  # fmt: skip


class RMSNormFiLM(FilmOptions, nn.RMSNorm):
    """An `nn.RMSNorm` over the channels whose forward is normalisation, FiLM and activation in one operator.

    Same constructor, initialisation and state_dict as `nn.RMSNorm` of one size. The channels come last, as for
    `nn.RMSNorm`; with `channel_dim=1` they are those of (N, C, *spatial). The other options after `*` are those of
    `film_kernels.norm_film`.

    Raises:
        ValueError: an unknown `activation`, `film_position` or `channel_dim`, or a `normalized_shape` of several sizes.
        TypeError: `negative_slope` or `gamma_offset` is not a number.
    """

    def __init__(
        self,
        normalized_shape: int | list[int] | torch.Size,
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "silu",
        negative_slope: float = 0.01,
        film_position: str = "pre",
        gamma_offset: float = 0.0,
        channel_dim: int = -1,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)
        self._set_options(activation, negative_slope, film_position, gamma_offset)
        self.channel_dim = _over_channels(self.normalized_shape, channel_dim)

    def forward(self, x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
        """x (N, *spatial, C), gamma and beta (N, C), (1, C), (C,), (N, 1, ..., C) or None (1 and 0); with
        `channel_dim=1` x (N, C, *spatial) and (N, C, 1, ...).

        Returns the shape of x. Raises as `film_kernels.norm_film` does."""
        if not torch.jit.is_scripting():
            return functional.norm_film(
                x, "rms", None, self.weight, None, gamma, beta, eps=rms_eps(x.dtype, self.eps),
                activation=self.activation, negative_slope=self.negative_slope, film_position=self.film_position,
                gamma_offset=self.gamma_offset, channel_dim=self.channel_dim,
            )  # fmt: skip
        last = x if self.channel_dim == -1 else x.movedim(1, -1)
        z = F.rms_norm(last, self.normalized_shape, self.weight, self.eps)
        return scripted.over_channels(
            z, self.channel_dim, gamma, beta,
            self.activation, self.negative_slope, self.film_position, self.gamma_offset,
        )  # fmt: skip


def rms_eps(dtype: torch.dtype, eps: float | None) -> float:
    """The eps that `torch.nn.functional.rms_norm` means: for None that of the dtype it computes in."""
    if eps is not None:
        return eps
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps


def _over_channels(normalized_shape: tuple[int, ...], channel_dim: int) -> int:
    if len(normalized_shape) != 1:
        raise ValueError(f"normalized_shape must be the number of channels, got {tuple(normalized_shape)}")
    if channel_dim not in (1, -1):
        raise ValueError(f"channel_dim must be 1 or -1, got {channel_dim!r}")
    return channel_dim
