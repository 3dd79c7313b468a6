"""The compiled kernels for CPUs (csrc/cpu): convolution, activation, FiLM and the bits in one pass."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _library
from ..activations import why_not_one_bit
from ..problem import Problem, gradient_strides, strides_of
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
    def _not_loaded(self) -> str | None:
        reason = _library.load("_cpu")
        if reason is None:
            _register_fakes()
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
        return torch.ops.film_kernels_cpu.forward(
            input, weight, bias, gamma, beta, *options_of(problem), keep, problem.channels_last
        )

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
    """Shapes and strides of the operators' results, for whoever traces them; of the library's own checks, those of
    shapes and dtypes."""
    fake = torch.library.register_fake

    def check(name: str, tensor: Tensor | None, like: Tensor | None, shape: Sequence[int] | None = None) -> None:
        if tensor is None:
            raise RuntimeError(f"film_kernels: {name} must be a tensor, got None")
        if like is not None and tensor.dtype != like.dtype:
            raise RuntimeError(f"film_kernels: {name} must have the dtype of the others, {like.dtype}")
        if shape is not None and tuple(tensor.shape) != tuple(shape):
            raise RuntimeError(f"film_kernels: {name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")

    def out_shape(input_shape: Sequence[int], weight: Tensor, geometry: Sequence[int]) -> tuple[int, ...]:
        if len(geometry) != 11 or len(input_shape) not in (3, 4) or weight.dim() != len(input_shape):
            raise RuntimeError(
                "film_kernels: geometry must hold 11 integers, and input and weight must have 3 or 4 dimensions"
            )
        if geometry[8] < 1 or input_shape[1] != weight.shape[1] * geometry[8]:
            raise RuntimeError("film_kernels: input must have as many channels as weight has in its groups")
        spatial = (geometry[3], geometry[7]) if len(input_shape) == 4 else (geometry[7],)
        return (input_shape[0], weight.shape[0], *spatial)

    def check_factors(weight: Tensor, batch: int, bias=None, gamma=None, beta=None) -> None:
        channels = weight.shape[0]
        for name, tensor, shape in (
            ("bias", bias, (channels,)),
            ("gamma", gamma, (batch, channels)),
            ("beta", beta, (batch, channels)),
        ):
            if tensor is not None:
                check(name, tensor, weight, shape)

    def bits_shape(shape: Sequence[int]) -> tuple[int, int]:
        return math.prod((shape[0], *shape[2:])), (shape[1] + 7) // 8

    def check_backward(grad: Tensor, bits: Tensor, weight: Tensor, shape: Sequence[int], activation: int) -> None:
        check("grad", grad, weight, shape)
        if activation:
            check("bits", bits, None, bits_shape(shape))

    def like(tensor: Tensor, shape: Sequence[int], channels_last: bool) -> Tensor:
        return tensor.new_empty_strided(shape, strides_of(shape, channels_last))

    @fake("film_kernels_cpu::forward")
    def _(input, weight, bias, gamma, beta, geometry, lower_slope, gamma_offset, keep, channels_last=False):
        check("input", input, None)
        check("weight", weight, input)
        shape = out_shape(input.shape, weight, geometry)
        check_factors(weight, shape[0], bias, gamma, beta)
        rows, row = bits_shape(shape)
        bits = input.new_empty((rows if keep and geometry[9] else 0, row), dtype=torch.uint8)
        return like(input, shape, channels_last), bits

    @fake("film_kernels_cpu::grad_input")
    def _(grad, bits, weight, gamma, input_size, channels_last, geometry, lower_slope, gamma_offset):
        check("weight", weight, None)
        check_backward(grad, bits, weight, out_shape(input_size, weight, geometry), geometry[9])
        check_factors(weight, input_size[0], gamma=gamma)
        return like(grad, input_size, channels_last)

    @fake("film_kernels_cpu::grad_weight")
    def _(grad, bits, input, weight, bias, gamma, for_weight, for_bias, for_gamma, for_beta, geometry, *slopes):
        check("input", input, None)
        check("weight", weight, input)
        check_backward(grad, bits, weight, out_shape(input.shape, weight, geometry), geometry[9])
        check_factors(weight, input.shape[0], bias, gamma)
        return (
            weight.new_empty_strided(weight.shape, gradient_strides(weight)) if for_weight else weight.new_empty(0),
            weight.new_empty(weight.shape[0] if for_bias else 0),
            weight.new_empty(input.shape[0] if for_gamma else 0, weight.shape[0]),
            weight.new_empty(input.shape[0] if for_beta else 0, weight.shape[0]),
        )
