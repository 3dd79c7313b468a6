"""The compiled library for CPUs: whether it is here, and the dtypes that its kernels serve."""

from __future__ import annotations

import functools

import torch

from .. import _library
from ..problems import Problem
from . import cpu_fakes

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@functools.cache
def _not_loaded() -> str | None:
    reason = _library.load("_cpu")
    if reason is None:
        cpu_fakes.register()
    return reason


@functools.cache
def wrong_setting() -> str | None:
    """What the library says of FILM_KERNELS_CPU_ISA where it names instructions that are not here."""
    if _not_loaded() is None:
        try:
            torch.ops.film_kernels_cpu.instruction_sets()
        except RuntimeError as error:
            return str(error).partition("film_kernels: ")[2]
    return None


def unavailable() -> str | None:
    """Why nothing can be served on this machine, or None."""
    return _not_loaded() or wrong_setting()


def why_not(problem: Problem) -> str | None:
    """Why no kernel of the library can serve `problem`, whatever its operator, or None."""
    if problem.device.type != "cpu":
        return f"it serves tensors on the CPU, not on {problem.device.type}"
    if problem.dtype not in _DTYPES:
        return f"it serves float32, float64, bfloat16 and float16, not {problem.dtype}"
    return None
