"""One fixture, `backend`, runs a test on every backend of this machine that has kernels for norm_film."""

from __future__ import annotations

import pytest
import torch

import film_kernels
from tests.helpers.norm_cases import SERVING


@pytest.fixture(params=SERVING)
def backend(request):
    reason = film_kernels.available_backends()[request.param]
    assert reason is None, f"{request.param} is not available: {reason}"
    return request.param


def pytest_collection_modifyitems(config, items):
    """The CUDA kernels have no float64: of the tests that test_cuda.py has in common with other backends those go."""

    def is_double(item):
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        return item.path.name == "test_cuda.py" and torch.float64 in parameters

    gone = [item for item in items if is_double(item)]
    config.hook.pytest_deselected(items=gone)
    items[:] = [item for item in items if not is_double(item)]
