"""Which cases a backend refuses, and in what words.

The table is held in both directions: a refusal that does not stand here fails a test, and so does one that stands here
and no longer happens. Otherwise a backend that refused everything would pass everything."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from film_kernels.activations import ACTIVATIONS
from film_kernels.backends import BACKENDS

from .cases import Case, problem_of, run


@dataclass(frozen=True)
class Refusal:
    backend: str
    case: str  # its name
    words: str  # in the reason
    channels_last: bool | None = None  # None: in either layout


REFUSALS = (
    *(
        Refusal(backend, case, f"it serves convolutions of one group, not {groups}")
        for backend in ("cuda", "triton")
        for case, groups in (
            ("grouped_dilated", 4),
            ("depthwise", 6),
            ("depthwise_wide", 40),
            ("depthwise_1d", 17),
            ("mixed", 2),
            ("scaling", 6),
            ("scaling_1d", 5),
        )
    ),
    Refusal("cuda", "many_products", "it serves more than 16 input channels in channels_last only", False),
    Refusal("cuda", "many_products", "it serves output channels that are a multiple of", True),
)
KEEP_ONE_BIT = {"cuda": ("bits",), "triton": ("bits",)}  # with what `keep`, and refuse smooth activations


def words_of_refusal(backend: str, case: Case, channels_last: bool = False) -> str | None:
    """What the reason must hold where `backend` is to refuse the case, or None where it must serve it."""
    if case.keep in KEEP_ONE_BIT.get(backend, ()) and not ACTIVATIONS[case.activation].one_bit:
        return f"not for the smooth {case.activation}"
    found = [
        refusal.words
        for refusal in REFUSALS
        if (refusal.backend, refusal.case) == (backend, case.name) and refusal.channels_last in (None, channels_last)
    ]
    assert len(found) <= 1, found
    return found[0] if found else None


def assert_served(backend: str, case: Case, tensors: list[Tensor | None]) -> None:
    """The backend gives no reason to refuse the case."""
    reason = BACKENDS[backend].why_not(problem_of(case, tensors))
    assert reason is None, f"{backend} refuses {case}: {reason}"


def assert_refused(backend: str, case: Case, tensors: list[Tensor | None], words: str) -> None:
    """The backend gives a reason with these words, and a call that is pinned to it raises that reason."""
    reason = BACKENDS[backend].why_not(problem_of(case, tensors))
    assert reason is not None and words in reason, f"{backend} on {case}: expected {words!r}, found {reason!r}"
    with pytest.raises(ValueError, match=re.escape(reason)):
        run(case, tensors, torch.empty(0), backend, tensors[0].dtype)
