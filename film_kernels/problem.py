"""`Problem`: everything a backend must know about one call before it sees the data."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Problem(NamedTuple):
    """Sizes, dtype, device, memory format and options of one convolution + activation + FiLM.

    A record that never changes. Sizes are plain integers, or symbolic ones while torch.compile traces.
    """

    input_shape: tuple[int, ...]  # (N, C, *in)
    weight_shape: tuple[int, ...]  # (K, C / groups, *kernel)
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]  # (before, after) for each spatial dimension
    dilation: tuple[int, ...]
    groups: int
    dtype: torch.dtype
    device: torch.device
    channels_last: bool  # memory format of the input, and so of the output
    has_bias: bool
    has_gamma: bool
    has_beta: bool
    activation: str
    negative_slope: float
    film_position: str
    gamma_offset: float

    @property
    def spatial_rank(self) -> int:
        """1, 2 or 3."""
        return len(self.stride)

    @property
    def batch(self) -> int:
        """N."""
        return self.input_shape[0]

    @property
    def out_channels(self) -> int:
        """K."""
        return self.weight_shape[0]

    @property
    def out_size(self) -> tuple[int, ...]:
        """*out: floor((in + padding - dilation * (kernel - 1) - 1) / stride) + 1, as torch.nn.Conv2d has it."""
        return tuple(
            (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, (before, after), dilation in zip(
                self.input_shape[2:], self.weight_shape[2:], self.stride, self.padding, self.dilation, strict=True
            )
        )

    @property
    def out_shape(self) -> tuple[int, ...]:
        """(N, K, *out)."""
        return (self.batch, self.out_channels, *self.out_size)

    @property
    def memory_format(self) -> torch.memory_format:
        """What the output is allocated in."""
        return memory_format(self.channels_last, self.spatial_rank)


def memory_format(channels_last: bool, spatial_rank: int) -> torch.memory_format:
    """The torch.memory_format of that name for 1, 2 or 3 spatial dimensions (1d has no channels_last of its own)."""
    if not channels_last or spatial_rank == 1:
        return torch.contiguous_format
    return torch.channels_last if spatial_rank == 2 else torch.channels_last_3d


def is_channels_last(input: torch.Tensor) -> bool:
    """Whether a convolution of `input` should write channels_last; where both formats fit, contiguous wins."""
    if input.dim() == 4:
        channels_last = torch.channels_last
    elif input.dim() == 5:
        channels_last = torch.channels_last_3d
    else:
        return False
    return not input.is_contiguous() and input.is_contiguous(memory_format=channels_last)
