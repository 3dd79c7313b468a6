"""Small calls, thousands of them: one thread, as `one_thread` has it."""

import pytest


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    return one_thread
