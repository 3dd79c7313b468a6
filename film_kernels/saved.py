"""What comes back from saved-tensor hooks, which may have compressed, moved or copied it: checked, never trusted."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .operators import Operator, Some
from .problems import Problem


def check_saved(problem: Problem, operator: Operator, saved: Some) -> None:
    """Raise RuntimeError unless the tensors of `operator.saved` are still what `problem` says."""
    device, shapes, dtypes = _expected(problem, operator)
    for at, tensor in enumerate(saved):
        if tensor is None or (tensor.dtype is dtypes[at] and tensor.shape == shapes[at] and tensor.device == device):
            continue
        raise RuntimeError(_came_back(problem, operator.saved[at], tensor, shapes[at], dtypes[at]))


@functools.lru_cache(maxsize=4096)
def _expected(problem: Problem, operator: Operator) -> tuple[torch.device, tuple[Any, ...], tuple[Any, ...]]:
    """The device, shapes and dtypes of the tensors of `operator.saved`."""
    pick = operator.pick_saved
    return problem.device, pick(problem.tensor_shapes), pick(problem.tensor_dtypes)


def _came_back(problem: Problem, name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype) -> str:
    return (
        f"{name}, saved for backward as {dtype} of shape {tuple(shape)} on {problem.device}, came back as "
        f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"
    )


def checked_kept(problem: Problem, kept: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """What a backend kept for itself, as it comes back, made dense. Bits may have been through another dtype, as
    numbers."""
    found = kept
    if kept.dtype is not dtype and dtype is torch.uint8 and kept.dtype.is_floating_point:
        found = kept.to(dtype)
        if not torch.equal(found.to(kept.dtype), kept):
            raise RuntimeError(f"{_came_back(problem, 'kept', kept, shape, dtype)}, with other values")
    if found.dtype is not dtype or found.shape != tuple(shape) or found.device != problem.device:
        raise RuntimeError(_came_back(problem, "kept", kept, shape, dtype))
    whole = len(shape) == len(problem.out_shape) and dtype is not torch.uint8  # as large as the output, and laid out so
    return found.contiguous(memory_format=problem.memory_format if whole else torch.contiguous_format)
