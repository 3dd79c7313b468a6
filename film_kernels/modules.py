"""The layers: `FiLM`, `FusedFiLM`, `FusedFiLM1d` and `FiLMGenerator`."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import adapters, functional, scripted
from .checks import check_choice
from .film_options import FilmOptions
from .problems.conv_film import KEEPS


class FiLM(nn.Module):
    """`gamma * x + beta`, per sample and channel, by broadcasting: the plain layer (Perez et al., AAAI 2018)."""

    def forward(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        """x (N, K, *spatial), gamma and beta (N, K), (1, K), (K,) or (N, K, 1, ...); returns the shape of x.

        Raises TypeError or ValueError naming the argument, as `film_kernels.film` does."""
        if not torch.jit.is_scripting():
            return functional.film(x, gamma, beta)
        return scripted.film(x, gamma, beta)


class _Fused(FilmOptions, nn.modules.conv._ConvNd):
    """What `FusedFiLM` adds to `nn.Conv2d`, and `FusedFiLM1d` to `nn.Conv1d`: it stands before them among the bases."""

    keep = "fast"  # of layers that were pickled before there was a choice

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "relu",
        negative_slope: float = 0.01,
        film_position: str = "post",
        gamma_offset: float = 0.0,
        keep: str = "fast",
    ) -> None:
        geometry = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        super().__init__(*geometry, bias, padding_mode, device, dtype)  # type: ignore[arg-type]  # the next base's
        self._set_options(activation, negative_slope, film_position, gamma_offset)
        self.keep = check_choice("keep", keep, KEEPS)

    def forward(self, x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
        """x (N, C, *in) or (C, *in); gamma and beta (N, K), (1, K), (K,), (N, K, 1, ...) or None (1 and 0).

        Returns (N, K, *out) or (K, *out). Raises as `film_kernels.conv_film` does."""
        if not torch.jit.is_scripting():
            padding = self.padding
            if self.padding_mode != "zeros":
                x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
                padding = (0,) * len(self.kernel_size)
            return functional.conv_film(
                x, self.weight, self.bias, gamma, beta, self.stride, padding, self.dilation, self.groups,
                activation=self.activation, negative_slope=self.negative_slope,
                film_position=self.film_position, gamma_offset=self.gamma_offset, keep=self.keep,
            )  # fmt: skip
        z = self._conv_forward(x, self.weight, self.bias)
        return scripted.activation_and_film(
            z, x.dim() == len(self.kernel_size) + 1, gamma, beta,
            self.activation, self.negative_slope, self.film_position, self.gamma_offset,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", keep={self.keep!r}" if self.keep != "fast" else "")


class FusedFiLM(_Fused, nn.Conv2d):
    """An `nn.Conv2d` whose forward is convolution, activation and FiLM in one pass.

    Same constructor, initialisation and state_dict as `nn.Conv2d`, so a checkpoint of the convolution it replaces loads
    unchanged. The options after `*` are those of `film_kernels.conv_film`, where the formula stands.

    `torch.jit.script` compiles it to PyTorch's own operators. Under an adapter of the package peft (LoRA and its kin)
    it is the convolution alone, and activation and FiLM follow the adapter, until that is merged or unloaded. Whatever
    else adds something to a convolution's output, or folds what follows into its weight (`fuse_conv_bn_eval`), would do
    so after FiLM here: give it `nn.Conv2d`, activation and FiLM, and join them afterwards by `film_kernels.fuse`.

    Raises:
        ValueError: an unknown `activation`, `film_position` or `keep`, or what `nn.Conv2d` raises.
        TypeError: `negative_slope` or `gamma_offset` is not a number.
    """


class FusedFiLM1d(_Fused, nn.Conv1d):
    """An `nn.Conv1d` whose forward is convolution, activation and FiLM in one pass: `FusedFiLM` for x (N, C, L)."""


adapters.lend(FusedFiLM, adapters.LentConv2d)
adapters.lend(FusedFiLM1d, adapters.LentConv1d)


class FiLMGenerator(nn.Module):
    """One Linear layer from an embedding to gamma and beta (the FiLM generator of Perez et al., AAAI 2018).

    Args:
        embedding_size: features of the embedding.
        num_channels: K, the channels to modulate; the layer has 2 K outputs, gamma's first.
    """

    def __init__(
        self,
        embedding_size: int,
        num_channels: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(embedding_size, 2 * num_channels, device=device, dtype=dtype)

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """embedding (N, embedding_size); returns (gamma, beta), each (N, num_channels).

        Raises RuntimeError where the embedding's size is another, as `nn.Linear` does."""
        gamma, beta = self.linear(embedding).chunk(2, dim=-1)
        return gamma, beta
