"""The Triton backend called directly, and held to the rule of tests/cases.py."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cases import NAMES, Case, incoming_gradient, more_exact, problem_of, run
from film_kernels.backends.triton import Triton


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
    problem = problem_of(case, tensors)
    assert backend.unavailable() is None and backend.why_not(problem) is None
    with autotune.pinned(entry or {}):
        y, kept = backend.forward(problem, *tensors, True)
        like = backend.kept_like(problem)
        assert (kept.shape, kept.dtype, kept.stride()) == (like.shape, like.dtype, like.stride())
        wanted = tuple(t is not None for t in tensors) if wanted is None else wanted
        return [y, *backend.backward(problem, grad, kept, *tensors, wanted)]


def assert_as_good_as_plain(
    case: Case,
    draw: Callable[[int], list[Tensor | None]],
    change_grad: Callable[[Tensor], Tensor] = lambda grad: grad,
    entry: dict | None = None,
    draws: int | None = None,
) -> None:
    """Output and gradients at most twice as far from float64 as plain PyTorch's in the same dtype, over several draws
    together: of a gradient with a few elements one draw says little."""
    draws = max(2, 12 // case.weight[0]) if draws is None else draws
    squares = {name: torch.zeros(3, dtype=torch.float64) for name in NAMES}  # of our error, plain's error, the size
    for seed in range(draws):
        tensors = draw(seed)
        dtype = tensors[0].dtype
        grad = change_grad(incoming_gradient(case, tensors, seed))
        plain = run(case, tensors, grad, "reference", dtype)
        ours = run_triton(case, tensors, grad, entry)
        for name, better, theirs, result in zip(NAMES, more_exact(case, tensors, grad), plain, ours, strict=True):
            if better is None:
                assert result is None, name
                continue
            assert result.dtype == dtype and result.shape == theirs.shape, name
            errors = (result.double().numpy() - better, theirs.double().numpy() - better, better)
            squares[name] += torch.tensor([float((e**2).sum()) for e in errors], dtype=torch.float64)
    for name, (error, allowed, size) in ((name, s.sqrt().tolist()) for name, s in squares.items()):
        floor = torch.finfo(dtype).eps / 2 * size
        assert error <= 2 * max(allowed, floor), (
            f"{name}: {error:.3g} off, plain PyTorch {allowed:.3g}, size {size:.3g}"
        )
