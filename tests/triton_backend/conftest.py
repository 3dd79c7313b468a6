"""These tests run the Triton kernels in Triton's interpreter, on the CPU."""

import pytest

from tests.helpers.cases import INTERPRETED

if not INTERPRETED:  # triton is optional
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def _interpreted(interpreter):
    pass
