"""The compiled kernels for CPUs (csrc/cpu): convolution, activation, FiLM and what backward needs in one pass: the
bits, or for smooth activations z = conv(input, weight) + bias."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..activations import ACTIVATIONS
from ..problems import Problem
from ..problems.conv_film import ConvFilm, Tensors
from ..problems.norm_film import NormFilm
from . import cpu_library, cpu_pass, library
from .base import AS_ROWS, Backend, ForBackward, Kernels, asked_for
from .compiled import options_tensor, packed_norm_options, packed_options
from .conv_film import ConvFilmKernels, bits_like
from .cpu_scaling import CpuScaling, is_scaling
from .norm_film import NormFilmKernels

_USES = ("film", "alone", "alone packed")  # in the kernels' order


def _has_bits(problem: ConvFilm) -> bool:
    """Whether one bit an element is enough for backward."""
    return ACTIVATIONS[problem.activation].one_bit


def _makes_z_again(problem: ConvFilm) -> bool:
    """Whether backward, which needs z, computes it once more."""
    return not _has_bits(problem) and problem.keep == "least"


def _convolution_of(problem: ConvFilm) -> ConvFilm:
    """What is left of `problem` without activation and FiLM."""
    return problem._replace(
        has_gamma=False, has_beta=False, activation="none", film_position="post", gamma_offset=0.0, keep="fast"
    )


def _is_small_sample(problem: ConvFilm) -> bool:
    """Whether PyTorch multiplies the input as a matrix itself, in place of a call of oneDNN: `use_mkldnn` in its
    aten/src/ATen/native/Convolution.cpp."""
    kernel = problem.weight_shape[2:]
    dense = problem.groups == 1 and all(dilation == 1 for dilation in problem.dilation)
    large_kernel = len(kernel) == 2 and min(kernel) > 3
    return dense and not large_kernel and problem.batch == 1 and math.prod(problem.input_shape) <= 20480


def _are_there(tensors: Sequence[Tensor | None]) -> list[bool]:
    return [tensor is not None for tensor in tensors]


def _at_once(operator: Callable[..., Any]) -> Callable[..., Any]:
    """What a call of one of `torch.ops` calls in its turn: a call of Python less."""
    return getattr(operator, "_op", operator)


def _recorded(operator: Callable[..., Any], problem: Problem, read: Sequence[bool]) -> ForBackward:
    """`Kernels.prepared_for_backward` by an operator that copies bias and beta where `read` says so."""
    operator, options = _at_once(operator), options_tensor(problem)
    copy_bias, copy_beta = read

    def forward(tensors, others):
        y, kept, bias, beta = operator(*tensors, options, copy_bias, copy_beta)
        return y, kept, (bias, beta)

    return forward


class CpuConvFilm(ConvFilmKernels):
    def why_not(self, problem: ConvFilm) -> str | None:
        if (reason := cpu_library.why_not(problem)) is not None:
            return reason
        if problem.spatial_rank == 3:
            return "it serves 1d and 2d convolutions, not 3d"
        if problem.weight_shape[1] == 0:
            return "it serves inputs of at least one channel"
        return None

    def is_slow(self, problem: ConvFilm, use: str = "alone") -> bool:
        """`use`, of a convolution with nothing behind it, is "alone", or "alone packed" where its weight was packed
        before."""
        # The rule is that of the kernels (csrc/cpu/library_is_faster.cpp).
        code = _USES.index(use if is_alone(problem) else "film")
        small = code != 0 and _is_small_sample(problem)
        weight_shape = tuple(map(int, problem.weight_shape))  # each symbolic size gets a graph of its own
        with torch._C._DisableTorchDispatch():  # whoever traces may not know that a number is asked for
            fewest = torch.ops.film_kernels_cpu.fewest_positions(
                weight_shape, problem.dtype, problem.stride, problem.dilation, problem.padding_before,
                problem.groups, problem.channels_last, code, small,
            )  # fmt: skip
        return problem.batch * math.prod(problem.out_size) < fewest

    def kept_like(self, problem: ConvFilm) -> Tensor:
        """The bits as bits_like has them; of smooth activations z, or with keep="least" nothing."""
        if _has_bits(problem):
            return bits_like(problem)
        return library.nothing_like(problem) if _makes_z_again(problem) else library.result_like(problem)

    def reads(self, problem, wanted):
        if _has_bits(problem):
            return super().reads(problem, wanted)
        return _makes_z_again(problem), problem.film_position == "pre"

    def forward(self, problem, tensors, for_backward):
        keeps = for_backward and not _makes_z_again(problem)
        y, kept = torch.ops.film_kernels_cpu.forward(*tensors, *packed_options(problem), keeps, problem.channels_last)
        return y, (library.nothing_like(problem) if for_backward and not keeps else kept)

    def forward_and_copy(self, problem, tensors, copied):
        keeps = not _makes_z_again(problem)
        asked = _are_there(copied)
        y, kept, *copies = torch.ops.film_kernels_cpu.forward_and_copy(
            *tensors, *packed_options(problem), keeps, problem.channels_last, *asked
        )
        return y, (kept if keeps else library.nothing_like(problem)), asked_for(copies, asked)

    def backward(self, problem, grad, kept, tensors, wanted):
        if _has_bits(problem):
            return self.prepared_backward(problem)(grad, kept, tensors, wanted)
        input, weight, bias, gamma, beta = tensors
        convolution = _convolution_of(problem)
        if _makes_z_again(problem):  # by the way that forward took, which depends on the activation; y is not read
            options = packed_options(problem)
            _, kept = torch.ops.film_kernels_cpu.forward(
                input, weight, bias, None, None, *options, True, problem.channels_last
            )
        asked = (wanted[0] or wanted[1], *wanted[2:])
        dz, *sums = cpu_pass.backward(problem, grad, kept, gamma, beta, asked)
        if dz is None:
            return None, None, *sums
        found = self.backward(
            convolution,
            dz,
            bits_like(convolution),
            (input, weight, None, None, None),
            (*wanted[:2], False, False, False),
        )
        return *found[:2], *sums

    def prepared_backward(self, problem, sizes=AS_ROWS):
        if not _has_bits(problem):
            return None
        operator, options = torch.ops.film_kernels_cpu.backward.default, packed_options(problem)
        rest = (*options, problem.channels_last, *sizes)

        def backward(grad, kept, tensors, wanted):
            return asked_for(operator(grad, kept, *tensors[:4], *wanted, *rest), wanted)

        return backward

    def pack(self, problem: ConvFilm, weight: Tensor) -> Tensor:
        """`weight` as forward reads it, so that a call which is given it need not do that work. Its layout is that of
        the kernels of this process."""
        return torch.ops.film_kernels_cpu.pack(weight, problem.input_shape, *packed_options(problem))

    def prepared(self, problem: ConvFilm) -> Callable[..., Tensor]:
        """A function of the tensors, and of the weight as `pack` has made it, if it has."""
        operators, channels_last = torch.ops.film_kernels_cpu, problem.channels_last
        alone, operator = _at_once(operators.forward_alone.default), operators.forward.default
        (geometry, numbers), options = packed_options(problem), options_tensor(problem)

        def forward(input, weight, bias, gamma, beta, packed=None):
            if packed is None:
                return alone(input, weight, bias, gamma, beta, options)
            return operator(input, weight, bias, gamma, beta, geometry, numbers, False, channels_last, packed)[0]

        return forward

    def prepared_for_backward(self, problem: ConvFilm, read: Sequence[bool]) -> ForBackward | None:
        if _makes_z_again(problem):
            return None
        return _recorded(torch.ops.film_kernels_cpu.forward_recorded.default, problem, read)

    def forward_packed(self, problem: ConvFilm, tensors: Tensors, packed: Tensor | None) -> Tensor:
        """y, with the weight as `pack` has made it, if it has."""
        return self.prepared(problem)(*tensors, packed)

    def grad_input(self, problem, grad, kept, weight, gamma):
        return torch.ops.film_kernels_cpu.grad_input(
            grad, kept, weight, gamma, problem.input_shape, problem.channels_last, *packed_options(problem)
        )

    def grad_weight(self, problem, grad, kept, tensors, wanted):
        results = torch.ops.film_kernels_cpu.grad_weight(grad, kept, *tensors[:4], *wanted, *packed_options(problem))
        return asked_for(results, wanted)


def is_alone(problem: ConvFilm) -> bool:
    """Whether nothing but a bias stands behind the convolution."""
    return problem.activation == "none" and not (problem.has_gamma or problem.has_beta or problem.gamma_offset)


class CpuNormFilm(NormFilmKernels):
    def why_not(self, problem: NormFilm) -> str | None:
        return cpu_library.why_not(problem)

    def forward(self, problem, tensors, for_backward):
        return torch.ops.film_kernels_cpu.norm_forward(*tensors, *packed_norm_options(problem), problem.channels_last)

    def prepared(self, problem: NormFilm) -> Callable[..., Tensor]:
        operator = _at_once(torch.ops.film_kernels_cpu.norm_forward_alone.default)
        options = options_tensor(problem)

        def forward(input, weight, bias, gamma, beta):
            return operator(input, weight, bias, gamma, beta, options)

        return forward

    def prepared_for_backward(self, problem: NormFilm, read: Sequence[bool]) -> ForBackward:
        return _recorded(torch.ops.film_kernels_cpu.norm_forward_recorded.default, problem, read)

    def forward_and_copy(self, problem, tensors, copied):
        asked = _are_there(copied)
        y, kept, *copies = torch.ops.film_kernels_cpu.norm_forward_and_copy(
            *tensors, *packed_norm_options(problem), problem.channels_last, *asked
        )
        return y, kept, asked_for(copies, asked)

    def backward(self, problem, grad, kept, tensors, wanted):
        return self.prepared_backward(problem)(grad, kept, tensors, wanted)

    def prepared_backward(self, problem, sizes=AS_ROWS):
        operator, options = torch.ops.film_kernels_cpu.norm_backward.default, packed_norm_options(problem)
        rest = (*options, problem.channels_last, *sizes)

        def backward(grad, kept, tensors, wanted):
            return asked_for(operator(grad, kept, *tensors, *wanted, *rest), wanted)

        return backward


class Cpu(Backend):
    name = "cpu"
    kernels = (CpuConvFilm(), CpuNormFilm())
    _scaling = CpuScaling()

    def of(self, problem: Problem) -> Kernels:
        if isinstance(problem, ConvFilm) and is_scaling(problem):
            return self._scaling
        return super().of(problem)

    def unavailable(self) -> str | None:
        return cpu_library.unavailable()

    def check_settings(self) -> None:
        """Raises ValueError where FILM_KERNELS_CPU_ISA names what is not here."""
        if (reason := cpu_library.wrong_setting()) is not None:
            raise ValueError(reason)
