"""What comes back from saved-tensor hooks, which may have compressed, moved or copied it: checked, never trusted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .operators import Some
from .plans import Plan
from .problems import Problem


def check_saved(plan: Plan, saved: Some) -> None:
    """Raise RuntimeError unless the tensors of `Operator.saved` are still what `plan` says."""
    device, shapes, dtypes = plan.problem.device, plan.saved_shapes, plan.saved_dtypes
    for at, tensor in enumerate(saved):
        if tensor is None or (tensor.dtype is dtypes[at] and tensor.shape == shapes[at] and tensor.device == device):
            continue
        raise RuntimeError(_came_back(plan.problem, plan.operator.saved[at], tensor, shapes[at], dtypes[at]))


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
    whole = dtype is not torch.uint8 and len(shape) == len(problem.out_shape)  # as large as the output, and laid out so
    return found.contiguous(memory_format=problem.memory_format if whole else torch.contiguous_format)
