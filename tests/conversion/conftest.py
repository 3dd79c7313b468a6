"""Small calls, thousands of them: one thread, as `one_thread` has it; and whether they gain anything is not asked."""

import contextlib

import pytest

from tests.helpers.conversion.equality import without_a_judge


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    return one_thread


@pytest.fixture(autouse=True)
def _all_gain(request):
    """Every site that can be fused is, of whatever size, but for tests that are marked `judged`."""
    judged = request.node.get_closest_marker("judged") is not None
    with contextlib.nullcontext() if judged else without_a_judge():
        yield
