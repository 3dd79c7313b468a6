"""What the tests of the performance suite share."""

import pytest
import torch

from bench import limits


@pytest.fixture
def known_peaks(monkeypatch):
    """Peaks that need not be measured."""
    monkeypatch.setitem(limits.MEASURED, torch.float32, limits.Peaks(1e11, 1e10))
