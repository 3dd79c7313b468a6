"""What autograd keeps: each layer's, and a whole network's with the time of its training step."""

import pytest
import torch

from bench.memory import NETWORKS, kept_bytes
from bench.peers import PEERS, Unserved, call_of
from bench.recorded import CLOCK
from bench.shapes import ROWS
from bench.work import make

_KEEPERS = ("plain", *(name for name, peer in PEERS.items() if peer.ours))


@pytest.mark.parametrize("row", [name for name, row in ROWS.items() if not row.channels_last])
def test_layer(suite, row):
    work = make(suite.row(row), suite.device)
    for name in _KEEPERS:
        try:
            call, own = call_of(PEERS[name], work, training=True)
        except Unserved as reason:
            suite.kept.append({"row": row, "peer": name, "bytes": None, "reason": str(reason)})
            continue
        count = kept_bytes(lambda call=call, own=own: call(own.input), own.leaves.values())
        suite.kept.append({"row": row, "peer": name, "bytes": count, "reason": ""})
    suite.advance(row)
    if suite.device.type == "cuda":
        torch.cuda.empty_cache()


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("peer", _KEEPERS)
@pytest.mark.parametrize("kind", ["network"])
@pytest.mark.parametrize("row", [row.name for row in NETWORKS.values()])
def test_network(measured, kind, row, peer):
    measured(kind, row, peer, _KEEPERS)
