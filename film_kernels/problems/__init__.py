"""The records of calls, one kind for each operator: everything that a backend must know before it sees the data."""

from __future__ import annotations

from typing import Protocol

import torch


class Problem(Protocol):
    """What the record of every operator tells. It is hashable and never changes; sizes are plain integers, or symbolic
    ones while torch.compile traces."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensors."""

    @property
    def device(self) -> torch.device:
        """Of the tensors."""

    @property
    def channels_last(self) -> bool:
        """The memory format of the output, and of the input's gradient."""

    @property
    def out_shape(self) -> tuple[int, ...]:
        """(N, K, *out)."""

    @property
    def tensor_shapes(self) -> tuple[tuple[int, ...], ...]:
        """What the operator's tensors have to be like, in their order; those that are not given too."""

    @property
    def tensor_dtypes(self) -> tuple[torch.dtype, ...]:
        """What they are of."""

    @property
    def memory_format(self) -> torch.memory_format:
        """What the output is allocated in."""

    def __hash__(self) -> int: ...

    def _replace(self, *, device: torch.device) -> Problem:
        """The same on another device."""
