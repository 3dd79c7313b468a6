"""One fixture, `backend`, runs a test on every backend of this machine that has kernels for norm_film."""

from __future__ import annotations

import pytest

import film_kernels
from tests.helpers.norm_cases import SERVING


@pytest.fixture(params=SERVING)
def backend(request):
    reason = film_kernels.available_backends()[request.param]
    assert reason is None, f"{request.param} is not available: {reason}"
    return request.param
