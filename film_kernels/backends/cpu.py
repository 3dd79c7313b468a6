"""The compiled kernels for CPUs (csrc/cpu): convolution, activation, FiLM and the bits in one pass."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from .. import _library
from ..activations import why_not_one_bit
from ..problems.conv_film import ConvFilm
from . import cpu_fakes
from .base import Backend
from .compiled import packed_options
from .conv_film import ConvFilmKernels, bits_like

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@functools.cache
def _multiplies_bfloat16() -> bool:
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return probe is not None and probe()


def _filtered(problem: ConvFilm) -> bool:
    """Whether it has 3 x 3 taps and csrc/cpu/winograd.h serves it (with_tiles)."""
    channels = min(problem.weight_shape[0] // problem.groups, problem.weight_shape[1])
    plain = problem.weight_shape[2:] == (3, 3) and set(problem.stride) == set(problem.dilation) == {1}
    return plain and channels >= 16 and problem.batch * math.prod(problem.out_size) >= 64


class CpuConvFilm(ConvFilmKernels):
    def why_not(self, problem: ConvFilm) -> str | None:
        if problem.device.type != "cpu":
            return f"it serves tensors on the CPU, not on {problem.device.type}"
        if problem.dtype not in _DTYPES:
            return f"it serves float32, float64, bfloat16 and float16, not {problem.dtype}"
        if problem.spatial_rank == 3:
            return "it serves 1d and 2d convolutions, not 3d"
        if problem.weight_shape[1] == 0:
            return "it serves inputs of at least one channel"
        return why_not_one_bit(problem.activation)

    def is_slow(self, problem: ConvFilm) -> bool:
        # Measured on a Zen 4 of two cores, against oneDNN's convolution and passes (bench/NOTES.md):
        # narrow groups are read plane by plane, for which channels_last has to be turned; ...
        width = problem.out_channels // problem.groups
        if problem.groups > 1 and (width < 4 or (width < 8 and problem.channels_last)):
            return True
        # ... and where the machine multiplies bfloat16 pairs, the library is about twice as fast on wide sums, but for
        # those that are shortened by Winograd's filtering.
        wide = math.prod(problem.weight_shape[1:]) >= 256
        return problem.dtype == torch.bfloat16 and wide and not _filtered(problem) and _multiplies_bfloat16()

    def kept_like(self, problem: ConvFilm) -> Tensor:
        """As bits_like has them."""
        return bits_like(problem)

    def forward(self, problem, tensors, keep):
        return torch.ops.film_kernels_cpu.forward(*tensors, *packed_options(problem), keep, problem.channels_last)

    def grad_input(self, problem, grad, kept, weight, gamma):
        return torch.ops.film_kernels_cpu.grad_input(
            grad, kept, weight, gamma, problem.input_shape, problem.channels_last, *packed_options(problem)
        )

    def grad_weight(self, problem, grad, kept, tensors, wanted):
        results = torch.ops.film_kernels_cpu.grad_weight(grad, kept, *tensors[:4], *wanted, *packed_options(problem))
        return tuple(result if asked else None for result, asked in zip(results, wanted, strict=True))


class Cpu(Backend):
    name = "cpu"
    kernels = (CpuConvFilm(),)

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
