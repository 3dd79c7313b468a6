"""The forward convolution by Hopper's own instructions (csrc/cuda/hopper.h), which serves where it is asked for:
FILM_KERNELS_CUDA_FORWARD=hopper. No measurement on a card chooses it yet."""

from __future__ import annotations

import functools
import os

import torch

from ..activations import why_not_one_bit
from ..problems.conv_film import ConvFilm
from .compiled import packed_options

VARIABLE = "FILM_KERNELS_CUDA_FORWARD"
_CAPABILITY = (9, 0)  # its machine code runs on no other


def is_asked_for() -> bool:
    """Whether the environment asks for it."""
    return os.environ.get(VARIABLE) == "hopper"


def wrong_setting() -> str | None:
    """What is wrong with what the environment says, or None."""
    value = os.environ.get(VARIABLE)
    return None if value in (None, "", "hopper") else f"{VARIABLE} must be 'hopper' or nothing, got {value!r}"


@functools.cache
def _why_not_on(device: torch.device) -> str | None:
    if not hasattr(torch.ops.film_kernels_cuda, "hopper_forward"):
        return "it was built without CUTLASS's headers (FILM_KERNELS_HOPPER=1 when building asks for them)"
    if device.type != "cuda":
        return f"it serves tensors on cuda, not on {device.type}"
    capability = torch.cuda.get_device_capability(device)
    return (
        None if capability == _CAPABILITY else "it serves GPUs of compute capability 9.0, not {}.{}".format(*capability)
    )


def why_not_sizes(problem: ConvFilm) -> str | None:
    """Why it cannot serve sizes, dtype and layout, on whatever device; the library is loaded."""
    if (reason := why_not_one_bit(problem.activation)) is not None:
        return reason
    if not problem.channels_last:
        return "it serves channels_last only (input.to(memory_format=torch.channels_last))"
    with torch._C._DisableTorchDispatch():  # whoever traces may not know that a text is asked for
        sizes = (tuple(map(int, shape)) for shape in (problem.input_shape, problem.weight_shape))
        reason = torch.ops.film_kernels_cuda.hopper_why_not(*sizes, problem.dtype, *packed_options(problem))
    return reason or None


def why_not(problem: ConvFilm) -> str | None:
    """Why it cannot serve `problem`, or None."""
    reason = _why_not_on(problem.device) or why_not_sizes(problem)
    return None if reason is None else f"{VARIABLE}=hopper: {reason}"
