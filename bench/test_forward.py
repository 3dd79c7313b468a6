"""Inference, row by row, and what a call costs before anything is computed."""

import pytest

from bench.peers import PEERS
from bench.recorded import CLOCK
from bench.shapes import ROWS, TINY

_CALLERS = ("plain", *(name for name, peer in PEERS.items() if peer.ours))


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("peer", _CALLERS)
@pytest.mark.parametrize("kind", ["call", "recorded call"])
@pytest.mark.parametrize("row", [row.name for row in TINY.values()])
def test_overhead(measured, kind, row, peer):
    measured(kind, row, peer, _CALLERS)


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("kind", ["forward"])
@pytest.mark.parametrize("row", ROWS)
def test_forward(measured, kind, row, peer):
    measured(kind, row, peer, tuple(PEERS))
