"""One fixture, `backend`, runs a test on every backend of this machine."""

from __future__ import annotations

import os

import pytest
import torch

import film_kernels
from cases import EXPECTED


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes or many gigabytes; run with --slow")
    torch.manual_seed(0)


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


@pytest.fixture(params=EXPECTED)
def backend(request):
    reason = film_kernels.available_backends()[request.param]
    assert reason is None, f"{request.param} is not available: {reason}"
    return request.param


@pytest.fixture(autouse=True)
def _no_pin_from_outside(monkeypatch):
    if "FILM_KERNELS_BACKEND" in os.environ:
        monkeypatch.delenv("FILM_KERNELS_BACKEND")


@pytest.fixture
def one_thread():
    """For thousands of calls too small to share out, where waiting for a second thread is most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
