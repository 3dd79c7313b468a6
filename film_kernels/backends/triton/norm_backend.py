"""norm_film by the Triton kernels: any norm, activation and layout."""

from __future__ import annotations

import torch
from torch import Tensor

from ...problems.norm_film import OF_POSITIONS, NormFilm, Tensors
from ..base import Gradients
from ..norm_film import NormFilmKernels
from ..plain import Plain
from .availability import DTYPES, why_not_here, why_nowhere

_plain = Plain()


def is_faster(problem: NormFilm) -> bool:
    """Whether these kernels can run and, of 16 bits on an NVIDIA H200, were faster than those of `cuda`: where a tile
    has all that is normalised, and where each channel of a channels_last map is a group (0.29 to 0.9 of their time).
    Where a group is cut those of `cuda` were faster, and took 0.29 to 0.82 of the time of these."""
    if problem.dtype.itemsize != 2 or why_nowhere() is not None or why_not_here(problem.device) is not None:
        return False
    from . import launch, norm_tuning
    from .norm_cut import held_of, of_positions

    if launch.gpu(problem.device) != "nvidia" or problem.norm not in ("group", *OF_POSITIONS):
        return False
    if of_positions(problem) or (problem.num_groups == problem.channels and problem.channels_last):
        return True
    return held_of(problem, norm_tuning.entries(problem, "norm_backward")[0], backward=True) is not None


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
        # float32 was not measured, and other cards neither: but by the user.
        from . import autotune

        if problem.device.type == "cpu":
            return True
        if autotune.is_timing(problem) or autotune.is_measured_to_be_faster(problem):
            return False
        return not (autotune.is_untimed(problem) and is_faster(problem))

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
