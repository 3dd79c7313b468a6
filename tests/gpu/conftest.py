"""Tests on a GPU, collected everywhere: one fixture, `backend`, runs a test on every backend for GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from film_kernels.backends import BACKENDS
from tests.helpers.card import DRY, SERVING
from tests.helpers.cases import float32_products


def pytest_collection_modifyitems(items):
    if DRY or torch.cuda.is_available():
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="PyTorch sees no GPU (DRY=1 tries these tests on the CPU)"))


@pytest.fixture(params=SERVING)
def backend(request):
    reason = BACKENDS[request.param].unavailable()
    assert reason is None, f"{request.param} is not available: {reason}"
    return request.param


@pytest.fixture(autouse=True)
def _exact_and_the_same_each_time(monkeypatch):
    """float32 products are exact but where a test asks for tf32, and the library's own sums have a fixed order."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    with float32_products("ieee"):
        yield


@pytest.fixture
def card():
    """For a test of what only a GPU has: streams, graphs, memory of its own."""
    if DRY:
        pytest.skip("it needs a GPU")
    return torch.device("cuda")
