"""norm_film by the hand-written CUDA kernels (csrc/cuda/norm_*.cu): any norm, activation and layout, float32 sums."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..problems.norm_film import NormFilm
from .compiled import packed_norm_options
from .cuda_device import why_not
from .norm_film import NormFilmKernels
from .triton.norm_backend import is_faster as triton_is_faster


class CudaNormFilm(NormFilmKernels):
    limits: Sequence[int] = ()  # of csrc/cuda/norm_cut.h, where a test wants smaller ones

    def why_not(self, problem: NormFilm) -> str | None:
        return why_not(problem)

    def is_slow(self, problem: NormFilm) -> bool:
        # On an H200 they took 0.18 to 0.52 of plain PyTorch's time forward and 0.18 to 0.71 in a training step, in
        # bfloat16, where Triton's take less of channels_last instances, of positions and of small groups. float32 was
        # not measured.
        return problem.device.type == "cpu" or problem.dtype.itemsize != 2 or triton_is_faster(problem)

    def forward(self, problem, tensors, keep):
        return torch.ops.film_kernels_cuda.norm_forward(
            *tensors, *packed_norm_options(problem), problem.channels_last, self.limits
        )

    def backward(self, problem, grad, kept, tensors, wanted):
        results = torch.ops.film_kernels_cuda.norm_backward(
            grad, kept, *tensors, *wanted, *packed_norm_options(problem), problem.channels_last, self.limits
        )
        return tuple(result if asked else None for result, asked in zip(results, wanted, strict=True))
