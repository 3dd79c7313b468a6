"""Whether a peer computes what it should, before it is timed.

Measured against float64, a peer may be ten times as far off as plain PyTorch is in the same dtype: enough to tell a
wrong kernel from another order of summation. How accurate a backend is, the package's own tests say.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .work import STEPS, Work, without_search

_MARGIN = 10.0


class Expected(NamedTuple):
    """Results in float64, what they are, and the largest error that each may have."""

    names: list[str]
    results: list[Tensor]
    allowed: list[float]


def expect(work: Work, kind: str) -> Expected:
    """What the step `kind` gives on `work`, by plain PyTorch in float64, and how far off plain PyTorch is."""
    case, exact = work.row.case, work.cast(torch.float64)
    with without_search():
        results = STEPS[kind](partial(case.plain, **exact.parameters), exact)()
    found = STEPS[kind](partial(case.plain, **work.parameters), work)()
    rounding = torch.finfo(work.input.dtype).eps / 2
    allowed = [
        _MARGIN * max(_error(f, r), rounding * float(r.detach().abs().max()))
        for f, r in zip(found, results, strict=True)
    ]
    names = ["output", *(f"grad_{name}" for name in work.leaves)]
    return Expected(names, [r.detach() for r in results], allowed)


def complaint(results: list[Tensor], expected: Expected) -> str | None:
    """What is wrong with `results`, or None."""
    for name, result, exact, allowed in zip(expected.names, results, expected.results, expected.allowed, strict=False):
        if result.shape != exact.shape:
            return f"{name} has shape {tuple(result.shape)}, not {tuple(exact.shape)}"
        error = _error(result, exact)
        if not error <= allowed:  # NaN too
            return f"{name} is wrong: {error:.3g} off, where {allowed:.3g} is allowed"
    return None


def _error(result: Tensor, exact: Tensor) -> float:
    """The largest difference. NaN counts."""
    return float((result.detach().double() - exact.detach()).abs().max())
