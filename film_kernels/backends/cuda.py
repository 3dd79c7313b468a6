"""The hand-written CUDA kernels (csrc/cuda) for NVIDIA GPUs: tensor cores for channels_last tensors of many channels,
ordinary float32 products for few input channels.

Without a GPU the same sources run on the CPU, slowly, for tests: FILM_KERNELS_CUDA_EMULATOR names the library that
tests/emulator was built into.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .. import _library
from ..activations import ACTIVATIONS, CODES, FILM_POSITIONS, why_not_one_bit
from ..problems.conv_film import ConvFilm
from . import cuda_hopper
from .base import Backend, Gradients
from .compiled import lower_slope, packed_options
from .conv_film import bits_like
from .cuda_device import emulator, why_not
from .cuda_norm import CudaNormFilm
from .gpu_conv_film import GpuConvFilmKernels

_PACKET = 16  # bytes that a thread moves at once: tensor-core kernels take channels in whole packets
_DIRECT = 16  # input channels, at most, of the kernels without tensor cores
_FEWEST = 4  # input channels, at most, that go to them though tensor cores could serve


def _why_no_tensor_cores(problem: ConvFilm) -> str | None:
    """Why the tensor-core kernels cannot serve the shapes and layout of `problem`, or None."""
    packet = _PACKET // problem.dtype.itemsize
    if not problem.channels_last:
        return (
            "it serves more than 16 input channels in channels_last only (input.to(memory_format=torch.channels_last))"
        )
    channels = {"input": problem.input_shape[1], "output": problem.out_channels}
    for name, count in channels.items():
        if count % packet:
            return f"it serves {name} channels that are a multiple of {packet} in {problem.dtype}, not {count}"
    return None


def _is_exact(problem: ConvFilm) -> bool:
    """Whether PyTorch's setting for float32 convolutions asks for exact products."""
    return problem.dtype == torch.float32 and torch.backends.cudnn.conv.fp32_precision != "tf32"  # type: ignore[attr-defined]


def _uses_tensor_cores(problem: ConvFilm) -> bool:
    """Which family of kernels serves, where one does."""
    channels = problem.input_shape[1]
    if channels > _DIRECT:
        return True
    return channels > _FEWEST and _why_no_tensor_cores(problem) is None and not _is_exact(problem)


def _aligned(tensor: Tensor) -> Tensor:
    return tensor if tensor.data_ptr() % _PACKET == 0 else tensor.clone(memory_format=torch.preserve_format)


def _channels_last(tensor: Tensor) -> Tensor:
    return _aligned(tensor.contiguous(memory_format=torch.channels_last))


def _in_packets(gamma: Tensor | None) -> Tensor | None:
    """`gamma` or beta (N, K) with neighbouring channels beside each other, each row at a multiple of 16 bytes."""
    if gamma is None:
        return None
    row = gamma.stride(0) * gamma.element_size()
    return _aligned(gamma if gamma.stride(1) == 1 and row % _PACKET == 0 else gamma.contiguous())


def _pass_options(problem: ConvFilm) -> tuple[bool, int, int, float, float]:
    """What the passes around the library's convolution take beside tensors."""
    position = FILM_POSITIONS.index(problem.film_position)
    return problem.channels_last, CODES[problem.activation], position, lower_slope(problem), problem.gamma_offset


def _is_few(problem: ConvFilm) -> bool:
    """Whether memory is the bound of an exact float32 convolution, and bits can be kept."""
    one_bit = ACTIVATIONS[problem.activation].one_bit
    return problem.dtype == torch.float32 and problem.input_shape[1] <= _FEWEST and one_bit


def _where_wanted(results: Sequence[Tensor], wanted: Sequence[bool]) -> Gradients:
    return tuple(result if asked else None for result, asked in zip(results, wanted, strict=True))


class CudaConvFilm(GpuConvFilmKernels):
    def why_not(self, problem: ConvFilm) -> str | None:
        if (reason := why_not(problem)) is not None:
            return reason
        if problem.spatial_rank == 3:
            return "it serves 1d and 2d convolutions, not 3d"
        if problem.groups != 1:
            return f"it serves convolutions of one group, not {problem.groups}"
        if problem.keep == "bits" and (reason := why_not_one_bit(problem.activation)) is not None:
            return reason
        if cuda_hopper.is_asked_for() and (reason := cuda_hopper.why_not(problem)) is not None:
            return reason
        channels = problem.input_shape[1]
        if channels == 0:
            return "it serves inputs of at least one channel"
        if channels <= _DIRECT:
            return None
        if (reason := _why_no_tensor_cores(problem)) is not None:
            return reason
        if _is_exact(problem):
            return (
                "it serves exact float32 products up to 16 input channels only; tensor cores take tf32 "
                "(torch.backends.cudnn.conv.fp32_precision = 'tf32')"
            )
        return None

    def is_slow(self, problem: ConvFilm) -> bool:
        # On an H200 float32 of 3 channels took 0.79 of the time of the library and one pass after it, forward, and 0.85
        # in a training step that keeps bits. On tensor cores these kernels were slower than the library.
        return problem.device.type == "cpu" or problem.keep == "least" or not _is_few(problem)

    def as_kept(self, problem: ConvFilm) -> ConvFilm:
        return problem._replace(keep="bits") if problem.keep == "fast" and _is_few(problem) else problem

    def bits_like(self, problem: ConvFilm) -> Tensor:
        return bits_like(problem)

    def fused(self, problem, tensors, with_bits, bias_copy=None):
        input, weight, bias, gamma, beta = tensors
        matrix = _uses_tensor_cores(problem)
        if matrix:
            input, weight = _channels_last(input), _channels_last(weight)
        if cuda_hopper.is_asked_for():
            aligned = None if bias is None else _aligned(bias.contiguous())
            y, bits = torch.ops.film_kernels_cuda.hopper_forward(
                input, weight, aligned, _in_packets(gamma), _in_packets(beta), *packed_options(problem), with_bits, -1
            )
            if bias_copy is not None:
                bias_copy.copy_(bias)
        else:
            y, bits = torch.ops.film_kernels_cuda.forward(
                input, weight, bias, gamma, beta, problem.channels_last, *packed_options(problem), matrix, with_bits,
                bias_copy,
            )  # fmt: skip
        return y, (bits if with_bits else None)

    def grad_input(self, problem, grad, kept, weight, gamma):
        matrix = _uses_tensor_cores(problem)
        if matrix:
            grad, gamma = _channels_last(grad), _in_packets(gamma)
            weight = weight.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
        return torch.ops.film_kernels_cuda.grad_input(
            grad, kept, weight, gamma, problem.input_shape, problem.channels_last, *packed_options(problem), matrix
        )

    def grad_weight(self, problem, grad, kept, tensors, wanted):
        input, weight, bias, gamma, _ = tensors
        matrix = _uses_tensor_cores(problem)
        if matrix:
            grad, input = _channels_last(grad), _channels_last(input)
        results = torch.ops.film_kernels_cuda.grad_weight(
            grad, kept, input, weight, bias, gamma, *wanted, *packed_options(problem), matrix
        )
        return _where_wanted(results, wanted)

    def after(self, problem, result, bias, gamma, beta, out, copies=(None, None)):
        return torch.ops.film_kernels_cuda.pass_forward(
            result, bias, gamma, beta, out, *_pass_options(problem), *copies
        )

    def before(self, problem, grad, result, bias, gamma, beta, wanted):
        grad = grad.contiguous(memory_format=problem.memory_format)
        results = torch.ops.film_kernels_cuda.pass_backward(
            grad, result, bias, gamma, beta, *wanted, *_pass_options(problem)
        )
        return _where_wanted(results, wanted)

    def recompute(self, problem, grad, tensors, wanted):
        """With few input channels the library's convolution is the one that is computed again."""
        if not _uses_tensor_cores(problem):
            return super().recompute(problem, grad, tensors, wanted)
        input, weight, *factors = tensors
        results = torch.ops.film_kernels_cuda.recompute(
            _channels_last(grad), _channels_last(input), _channels_last(weight), *factors, *wanted,
            *packed_options(problem),
        )  # fmt: skip
        return _where_wanted(results, wanted)


class Cuda(Backend):
    name = "cuda"
    kernels = (CudaConvFilm(), CudaNormFilm())

    @functools.cached_property
    def _not_loaded(self) -> str | None:
        return _library.load("_cuda")

    def check_settings(self) -> None:
        """Raises ValueError where FILM_KERNELS_CUDA_FORWARD names what is not there."""
        if (wrong := cuda_hopper.wrong_setting()) is not None:
            raise ValueError(wrong)

    def unavailable(self) -> str | None:
        if (wrong := cuda_hopper.wrong_setting()) is not None:
            return wrong
        if (path := emulator()) is not None:
            return _library.load_file(Path(path))
        if torch.version.cuda is None:
            return "this PyTorch was built without CUDA"
        return self._not_loaded if torch.cuda.is_available() else "PyTorch sees no NVIDIA GPU"
