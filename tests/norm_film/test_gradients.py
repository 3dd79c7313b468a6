"""Derivatives of norm_film against finite differences, for each norm and activation. Others are in
tests/test_gradients.py, for each operator."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.norm_cases import FUNCTIONS, Case, ours, tensors_of

pytestmark = pytest.mark.usefixtures("one_thread")
NORMS = (
    ("group", 2, 1), ("group", 1, 1), ("group", 4, 1), ("batch", None, 1),
    *((norm, None, dim) for norm in ("channel", "rms", "l2") for dim in (1, -1)),
)  # fmt: skip


def _small(norm, groups, dim, activation="silu", position="pre", **options):
    shape = (2, 4, 3) if dim == 1 else (2, 3, 4)
    return Case(shape, norm, groups, activation, position, 1.0, 1e-2, dim, **options)


@pytest.mark.parametrize("position", ["pre", "post"])
@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_gradcheck_and_gradgradcheck(backend, norm, position):
    case = _small(*norm, position=position)
    leaves = [t.requires_grad_() for t in tensors_of(case)]
    call = lambda *leaves: ours(case, leaves, backend)  # noqa: E731
    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize("position", ["pre", "post"])
@pytest.mark.parametrize("activation", FUNCTIONS)
def test_gradcheck_of_every_activation(backend, activation, position):
    case = _small("group", 2, 1, activation, position)
    leaves = [t.requires_grad_() for t in tensors_of(case, 3)]
    assert torch.autograd.gradcheck(lambda *leaves: ours(case, leaves, backend), leaves, fast_mode=True)
