"""The Triton backend's kernels that keep bits, called directly, and held to the rule of cases.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from film_kernels.backends.triton.backend import Triton
from tests.helpers.cases import Case, hold_to_the_rule, problem_of


def run_triton(
    case: Case,
    tensors: list[Tensor | None],
    grad: Tensor,
    entry: dict | None = None,
    wanted: tuple[bool, ...] | None = None,
) -> list[Tensor | None]:
    """[y, and the five gradients], with the entries in `entry` ({kernel: Entry}) or those of the rule."""
    from film_kernels.backends.triton import autotune

    backend = Triton()
    problem = problem_of(replace(case, keep="bits"), tensors)
    assert backend.unavailable() is None and backend.why_not(problem) is None
    with autotune.pinned(entry or {}):
        kernels = backend.of(problem)
        y, kept = kernels.forward(problem, tensors, True)
        like = kernels.kept_like(problem)
        assert (kept.shape, kept.dtype, kept.stride()) == (like.shape, like.dtype, like.stride())
        wanted = tuple(t is not None for t in tensors) if wanted is None else wanted
        return [y, *kernels.backward(problem, grad, kept, tensors, wanted)]


def assert_as_good_as_plain(
    case: Case,
    draw: Callable[[int], list[Tensor | None]],
    change_grad: Callable[[Tensor], Tensor] = lambda grad: grad,
    entry: dict | None = None,
    draws: int | None = None,
) -> None:
    """Hold the Triton backend to the rule, output and gradients. `draw(seed)` gives the five tensors."""
    draws = max(2, 12 // case.weight[0]) if draws is None else draws
    hold_to_the_rule(case, draw, lambda tensors, grad: run_triton(case, tensors, grad, entry), draws, change_grad)
