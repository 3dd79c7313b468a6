"""What comes back from saved-tensor hooks, which may have compressed, moved or copied it: checked, never trusted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .problem import Problem


def check_saved(problem: Problem, input: Tensor, weight: Tensor, gamma: Tensor | None) -> None:
    """Raise RuntimeError unless these are still what `problem` says."""
    if not (
        _is_as_saved(problem, input, problem.input_shape)
        and _is_as_saved(problem, weight, problem.weight_shape)
        and (gamma is None or _is_as_saved(problem, gamma, (problem.batch, problem.out_channels)))
    ):
        shapes = (problem.input_shape, problem.weight_shape, problem.out_shape[:2])
        for name, tensor, shape in zip(("input", "weight", "gamma"), (input, weight, gamma), shapes, strict=True):
            if tensor is not None and not _is_as_saved(problem, tensor, shape):
                raise RuntimeError(_came_back(problem, name, tensor, shape, problem.dtype))


def _is_as_saved(problem: Problem, tensor: Tensor, shape: Sequence[int]) -> bool:
    return tensor.dtype is problem.dtype and tensor.shape == shape and tensor.device == problem.device


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
    return found.contiguous(memory_format=torch.contiguous_format if dtype is torch.uint8 else problem.memory_format)
