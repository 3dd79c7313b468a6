"""A training step, row by row: forward, and the gradients of the input and all parameters, gamma and beta too."""

import pytest

from bench.peers import PEERS
from bench.recorded import CLOCK
from bench.shapes import ROWS


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("kind", ["training"])
@pytest.mark.parametrize("row", ROWS)
def test_training(measured, kind, row, peer):
    measured(kind, row, peer, tuple(PEERS))
