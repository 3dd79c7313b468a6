"""The compiled kernels for CPUs (csrc/cpu): convolution, activation, FiLM and the bits in one pass."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from .. import _library
from ..activations import why_not_one_bit
from ..problem import Problem, is_channels_last
from .base import Backend
from .compiled import bits_like, options_of

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@functools.cache
def _multiplies_bfloat16() -> bool:
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return probe is not None and probe()


def _filtered(problem: Problem) -> bool:
    """Whether it has 3 x 3 taps and csrc/cpu/winograd.h serves it (with_tiles)."""
    channels = min(problem.weight_shape[0] // problem.groups, problem.weight_shape[1])
    plain = problem.weight_shape[2:] == (3, 3) and set(problem.stride) == set(problem.dilation) == {1}
    return plain and channels >= 16 and problem.batch * math.prod(problem.out_size) >= 64


class Cpu(Backend):
    name = "cpu"

    @functools.cached_property
    def _unavailable(self) -> str | None:
        reason = _library.load("_cpu")
        if reason is None:
            _register_fakes()
        return reason

    def unavailable(self) -> str | None:
        return self._unavailable

    def why_not(self, problem: Problem) -> str | None:
        if problem.device.type != "cpu":
            return f"it serves tensors on the CPU, not on {problem.device.type}"
        if problem.dtype not in _DTYPES:
            return f"it serves float32, float64, bfloat16 and float16, not {problem.dtype}"
        if problem.spatial_rank == 3:
            return "it serves 1d and 2d convolutions, not 3d"
        if problem.weight_shape[1] == 0:
            return "it serves inputs of at least one channel"
        return why_not_one_bit(problem.activation)

    def is_slow(self, problem: Problem) -> bool:
        # Measured on a Zen 4 of two cores, against oneDNN's convolution and passes (bench/NOTES.md):
        # narrow groups are read plane by plane, for which channels_last has to be turned; ...
        width = problem.out_channels // problem.groups
        if problem.groups > 1 and (width < 4 or (width < 8 and problem.channels_last)):
            return True
        # ... and where the machine multiplies bfloat16 pairs, the library is about twice as fast on wide sums, but for
        # those that are shortened by Winograd's filtering.
        wide = math.prod(problem.weight_shape[1:]) >= 256
        return problem.dtype == torch.bfloat16 and wide and not _filtered(problem) and _multiplies_bfloat16()

    def kept_like(self, problem: Problem) -> Tensor:
        """As bits_like has them."""
        return bits_like(problem)

    def forward(self, problem, input, weight, bias, gamma, beta, keep):
        return torch.ops.film_kernels_cpu.forward(input, weight, bias, gamma, beta, *options_of(problem), keep)

    def grad_input(self, problem, grad, kept, weight, gamma):
        return torch.ops.film_kernels_cpu.grad_input(
            grad, kept, weight, gamma, problem.input_shape, problem.channels_last, *options_of(problem)
        )

    def grad_weight(self, problem, grad, kept, input, weight, bias, gamma, wanted):
        results = torch.ops.film_kernels_cpu.grad_weight(
            grad, kept, input, weight, bias, gamma, *wanted, *options_of(problem)
        )
        return tuple(result if asked else None for result, asked in zip(results, wanted, strict=True))


def _register_fakes() -> None:
    """Shapes and strides of the operators' results, for whoever traces them."""
    fake = torch.library.register_fake

    def like(tensor: Tensor, shape, channels_last: bool) -> Tensor:
        return tensor.new_empty(shape).contiguous(
            memory_format=torch.channels_last if channels_last else torch.contiguous_format
        )

    @fake("film_kernels_cpu::forward")
    def _(input, weight, bias, gamma, beta, geometry, lower_slope, gamma_offset, keep):
        out = (geometry[3], geometry[7]) if input.dim() == 4 else (geometry[7],)
        positions = input.shape[0] * geometry[3] * geometry[7] if keep and geometry[9] else 0
        bits = input.new_empty((positions, (weight.shape[0] + 7) // 8), dtype=torch.uint8)
        return like(input, (input.shape[0], weight.shape[0], *out), is_channels_last(input)), bits

    @fake("film_kernels_cpu::grad_input")
    def _(grad, bits, weight, gamma, input_size, channels_last, geometry, lower_slope, gamma_offset):
        return like(grad, input_size, channels_last)

    @fake("film_kernels_cpu::grad_weight")
    def _(grad, bits, input, weight, bias, gamma, for_weight, for_bias, for_gamma, for_beta, *options):
        return (
            like(weight, weight.shape, is_channels_last(weight)) if for_weight else weight.new_empty(0),
            weight.new_empty(weight.shape[0] if for_bias else 0),
            weight.new_empty(input.shape[0] if for_gamma else 0, weight.shape[0]),
            weight.new_empty(input.shape[0] if for_beta else 0, weight.shape[0]),
        )
