"""The compiled kernels for CPUs (csrc/cpu): convolution, activation, FiLM and the bits in one pass."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from .. import _library
from ..activations import why_not_one_bit
from ..problems import Problem
from ..problems.conv_film import ConvFilm
from ..problems.norm_film import NormFilm
from . import cpu_fakes
from .base import Backend
from .compiled import packed_norm_options, packed_options
from .conv_film import ConvFilmKernels, bits_like
from .norm_film import NormFilmKernels

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _why_not(problem: Problem) -> str | None:
    """What is the same for all kernels here."""
    if problem.device.type != "cpu":
        return f"it serves tensors on the CPU, not on {problem.device.type}"
    if problem.dtype not in _DTYPES:
        return f"it serves float32, float64, bfloat16 and float16, not {problem.dtype}"
    return None


class CpuConvFilm(ConvFilmKernels):
    def why_not(self, problem: ConvFilm) -> str | None:
        if (reason := _why_not(problem)) is not None:
            return reason
        if problem.spatial_rank == 3:
            return "it serves 1d and 2d convolutions, not 3d"
        if problem.weight_shape[1] == 0:
            return "it serves inputs of at least one channel"
        return why_not_one_bit(problem.activation)

    def is_slow(self, problem: ConvFilm) -> bool:
        # The rule is that of the kernels (csrc/cpu/library_is_faster.cpp).
        weight_shape = tuple(map(int, problem.weight_shape))  # each symbolic size gets a graph of its own
        with torch._C._DisableTorchDispatch():  # whoever traces may not know that a number is asked for
            fewest = torch.ops.film_kernels_cpu.fewest_positions(
                weight_shape, problem.dtype, problem.stride, problem.dilation, problem.padding_before,
                problem.groups, problem.channels_last,
            )  # fmt: skip
        return problem.batch * math.prod(problem.out_size) < fewest

    def kept_like(self, problem: ConvFilm) -> Tensor:
        """As bits_like has them."""
        return bits_like(problem)

    def forward(self, problem, tensors, for_backward):
        return torch.ops.film_kernels_cpu.forward(
            *tensors, *packed_options(problem), for_backward, problem.channels_last
        )

    def grad_input(self, problem, grad, kept, weight, gamma):
        return torch.ops.film_kernels_cpu.grad_input(
            grad, kept, weight, gamma, problem.input_shape, problem.channels_last, *packed_options(problem)
        )

    def grad_weight(self, problem, grad, kept, tensors, wanted):
        results = torch.ops.film_kernels_cpu.grad_weight(grad, kept, *tensors[:4], *wanted, *packed_options(problem))
        return tuple(result if asked else None for result, asked in zip(results, wanted, strict=True))


class CpuNormFilm(NormFilmKernels):
    def why_not(self, problem: NormFilm) -> str | None:
        return _why_not(problem)

    def forward(self, problem, tensors, for_backward):
        return torch.ops.film_kernels_cpu.norm_forward(*tensors, *packed_norm_options(problem), problem.channels_last)

    def backward(self, problem, grad, kept, tensors, wanted):
        results = torch.ops.film_kernels_cpu.norm_backward(
            grad, kept, *tensors, *wanted, *packed_norm_options(problem), problem.channels_last
        )
        return tuple(result if asked else None for result, asked in zip(results, wanted, strict=True))


class Cpu(Backend):
    name = "cpu"
    kernels = (CpuConvFilm(), CpuNormFilm())

    @functools.cached_property
    def _not_loaded(self) -> str | None:
        reason = _library.load("_cpu")
        if reason is None:
            cpu_fakes.register()
        return reason

    @functools.cached_property
    def _wrong_setting(self) -> str | None:
        """What the library says of FILM_KERNELS_CPU_ISA where it names instructions that are not here."""
        if self._not_loaded is None:
            try:
                torch.ops.film_kernels_cpu.instruction_sets()
            except RuntimeError as error:
                return str(error).partition("film_kernels: ")[2]
        return None

    def unavailable(self) -> str | None:
        return self._not_loaded or self._wrong_setting

    def check_settings(self) -> None:
        """Raises ValueError where FILM_KERNELS_CPU_ISA names what is not here."""
        if self._wrong_setting is not None:
            raise ValueError(self._wrong_setting)
