"""norm_film by the Triton kernels: any norm, activation and layout."""

from __future__ import annotations

import torch

from ...problems.norm_film import NormFilm
from ..norm_film import NormFilmKernels
from .availability import DTYPES, why_not_here


class TritonNormFilm(NormFilmKernels):
    def why_not(self, problem: NormFilm) -> str | None:
        if (reason := why_not_here(problem.device)) is not None:
            return reason
        if problem.dtype not in DTYPES:
            return f"it serves float32, float64, bfloat16 and float16, not {problem.dtype}"
        if problem.dtype == torch.float64 and problem.device.type != "cpu":
            return "it serves float64 in the interpreter only, to check derivatives"
        if 0 in problem.input_shape:
            return "an empty input goes through the plain formula"
        return None

    def is_slow(self, problem: NormFilm) -> bool:
        # No measurement on a card stands behind these kernels yet: they serve where they are pinned.
        return True

    def forward(self, problem, tensors, for_backward):
        from .norm_across import forward_of_positions
        from .norm_cut import dense, held_of, of_positions
        from .norm_forward import forward_of_groups
        from .norm_held import forward_held

        statistics = self.kept_like(problem) if for_backward else None
        if of_positions(problem):
            forward = forward_of_positions
        else:
            forward = forward_held if held_of(problem, backward=False) else forward_of_groups
        return forward(problem, (dense(problem, tensors[0]), *tensors[1:]), statistics), statistics

    def backward(self, problem, grad, kept, tensors, wanted):
        from .norm_backward import backward

        return backward(problem, grad, kept, tensors, wanted)
