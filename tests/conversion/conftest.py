"""Small calls, thousands of them: one thread, as `one_thread` has it; and whether they gain anything is not asked."""

import pytest

from film_kernels.conversion import swap


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    return one_thread


@pytest.fixture(autouse=True)
def _all_gain(request, monkeypatch):
    """Every site that can be fused is, of whatever size, but for tests that are marked `judged`."""
    if request.node.get_closest_marker("judged") is None:
        monkeypatch.setattr(swap, "judged", lambda match, **_: match)
