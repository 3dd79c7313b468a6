"""norm_film by the Triton kernels: any norm, activation and layout."""

from __future__ import annotations

import torch
from torch import Tensor

from ...problems.norm_film import NormFilm, Tensors
from ..base import Gradients
from ..norm_film import NormFilmKernels
from ..plain import Plain
from .availability import DTYPES, why_not_here

_plain = Plain()


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
        # No measurement on a card stands behind these kernels yet: they serve where they are pinned, or where the
        # user's own measurement says that they are faster.
        from . import autotune

        if problem.device.type == "cpu":
            return True
        return not (autotune.is_timing(problem) or autotune.is_measured_to_be_faster(problem))

    def reads(self, problem, wanted):
        """While it is timed against the plain formula, all that this may read."""
        from . import autotune

        return (True, True) if autotune.is_timing(problem) else super().reads(problem, wanted)

    def forward(self, problem, tensors, for_backward):
        from . import autotune

        if autotune.is_timing(problem):
            self._forward(problem, tensors, for_backward)  # times the entries first
            autotune.compare(
                problem,
                "forward",
                lambda: self._forward(problem, tensors, for_backward),
                lambda: _plain.of(problem).forward(problem, tensors, for_backward),
            )
        return self._forward(problem, tensors, for_backward)

    def _forward(self, problem: NormFilm, tensors: Tensors, for_backward: bool) -> tuple[Tensor, Tensor | None]:
        from .autotune import run
        from .norm_across import forward_of_positions
        from .norm_cut import dense, held_of, of_positions
        from .norm_forward import forward_of_groups
        from .norm_held import forward_held
        from .norm_tuning import NormEntry

        statistics = self.kept_like(problem) if for_backward else None
        tensors = (dense(problem, tensors[0]), *tensors[1:])

        def start(entry: NormEntry) -> Tensor:
            if of_positions(problem):
                return forward_of_positions(problem, tensors, statistics, entry)
            forward = forward_held if held_of(problem, entry, backward=False) else forward_of_groups
            return forward(problem, tensors, statistics, entry)

        return run(problem, "norm_forward", start), statistics

    def backward(self, problem, grad, kept, tensors, wanted):
        from . import autotune
        from .norm_backward import backward

        def ours() -> Gradients:
            return autotune.run(
                problem, "norm_backward", lambda entry: backward(problem, grad, kept, tensors, wanted, entry)
            )

        if autotune.is_timing(problem) and any(wanted):
            ours()  # times the entries first
            y, leaves = _plain.of(problem).graph(problem, tensors, wanted)
            autotune.compare(problem, "backward", ours, lambda: torch.autograd.grad(y, leaves, grad, retain_graph=True))
        return ours()
