"""Memory formats and strides: of outputs, and of gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def memory_format(channels_last: bool, spatial_rank: int) -> torch.memory_format:
    """The torch.memory_format of that name for 1, 2 or 3 spatial dimensions (1d has no channels_last of its own)."""
    if not channels_last or spatial_rank == 1:
        return torch.contiguous_format
    return torch.channels_last if spatial_rank == 2 else torch.channels_last_3d


def strides_of(shape: Sequence[int], channels_last: bool) -> tuple[int, ...]:
    """The strides of a dense tensor (N, C, *spatial) in that memory format, dimensions of size 1 included."""
    channels_last = channels_last and len(shape) in (4, 5)
    order = [*range(len(shape) - 1, 1, -1), 0] if channels_last else range(len(shape) - 1, -1, -1)
    strides, step = [1] * len(shape), shape[1] if channels_last else 1
    for dimension in order:
        strides[dimension] = step
        step = step * max(shape[dimension], 1)
    return tuple(strides)


def gradient_strides(tensor: torch.Tensor) -> tuple[int, ...]:
    """The strides of a gradient of `tensor`, as autograd's contract has them: the tensor's own where it is dense and
    nothing overlaps, or else contiguous. (`torch.empty_like` of a fake tensor changes those of sizes of 1.)"""
    shape, strides, step = tensor.shape, tensor.stride(), 1
    for stride, size in sorted((s, n) for s, n in zip(strides, shape, strict=True) if n != 1):
        if stride != step:
            return strides_of(shape, False)
        step *= size
    return strides


def writes_channels_last(input: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether a convolution writes channels_last: as PyTorch's own, where the input or the weight is."""
    return is_channels_last(input) or is_channels_last(weight)


def is_channels_last(tensor: torch.Tensor) -> bool:
    """Whether the elements of `tensor` stand in the order of channels_last, with or without gaps between them.

    Strides of dimensions of size 1 say nothing where the others tell; where both orders fit, as for one channel or one
    position, they are asked as `c10::is_channels_last_strides` asks them.
    """
    rank = tensor.dim()
    if rank not in (4, 5):
        return False
    contiguous = tensor.is_contiguous()
    if contiguous and tensor.stride(1) != 1:  # so nearly always: it has more than one position
        return False
    mapped = torch._C._are_functorch_transforms_active()  # by a vmap, which can be asked for strides alone
    if not contiguous and not mapped and tensor.is_contiguous(memory_format=memory_format(True, rank - 2)):
        return True
    return _strides_are_channels_last(tensor.shape, tensor.stride())


def _strides_are_channels_last(shape: Sequence[int], strides: Sequence[int]) -> bool:
    if strides[1] == 0:
        return False
    least = 0
    for dimension in (1, *range(len(shape) - 1, 1, -1), 0):
        if shape[dimension] == 0 or strides[dimension] < least:
            return False
        if dimension == 0 and least == strides[1]:  # (N, 1, 1, 1): nothing but N tells, which is the same in both
            return False
        least = strides[dimension] * shape[dimension]
    return True
