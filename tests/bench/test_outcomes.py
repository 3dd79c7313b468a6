"""Success, refusal and failure, from the peer that was measured to the end of the run."""

from __future__ import annotations

import os

import pytest

from bench import report
from bench.outcomes import Failed, Refused, Timed
from bench.peers import PEERS, Peer, Unserved
from bench.runner import Budget, Runner
from bench.shapes import ROWS
from film_kernels.backends import BACKENDS
from tests.helpers.performance_suite import CPU, SHORT, TINY_ROW, start


def test_success_refusal_and_failure_are_three_things(monkeypatch, known_peaks):
    def breaks(work):
        raise RuntimeError("no such engine\nand more")

    def refuses(work):
        raise Unserved("not on Sundays")

    peers = (Peer("broken", breaks), Peer("ours", breaks, ours=True), Peer("refusing", refuses, ours=True))
    for peer in peers:
        monkeypatch.setitem(PEERS, peer.name, peer)
    names = ("plain", "automatic", *(peer.name for peer in peers))
    outcomes = Runner(CPU, Budget(5, 1), SHORT).measure(TINY_ROW, "forward", names)
    assert outcomes["broken"] == Failed("RuntimeError: no such engine", fatal=False)
    assert outcomes["ours"] == Failed("RuntimeError: no such engine", fatal=True)
    assert outcomes["refusing"] == Refused("not on Sundays")
    for name in ("plain", "automatic"):
        assert isinstance(outcomes[name], Timed) and len(outcomes[name].times) >= SHORT.least


def test_a_backends_reason_is_a_refusal_and_a_wrong_setting_a_failure(monkeypatch, known_peaks):
    monkeypatch.setattr(BACKENDS["cpu"], "why_not", lambda problem: "not today")
    monkeypatch.setattr(BACKENDS["vendor"], "unavailable", lambda: "not installed")
    names = ("plain", "cpu", "vendor")
    outcomes = Runner(CPU, Budget(5, 1), SHORT).measure(TINY_ROW, "forward", names)
    assert outcomes["cpu"] == Refused("not today") and outcomes["vendor"] == Refused("not installed")

    def wrong():
        raise ValueError("no such instructions")

    monkeypatch.setattr(BACKENDS["cpu"], "check_settings", wrong)
    outcomes = Runner(CPU, Budget(5, 1), SHORT).measure(TINY_ROW, "forward", ("plain", "automatic"))
    assert outcomes["automatic"] == Failed("ValueError: no such instructions", fatal=True)


PLUGIN = """
import os
from bench.peers import PEERS, Peer, Unserved

def breaks(work):
    raise RuntimeError("no such engine")

def refuses(work):
    raise Unserved("not on Sundays")

for name in os.environ["MORE_PEERS"].split():
    PEERS[name] = Peer(name, refuses if name == "refusing" else breaks, ours=name == "ours")
"""


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        ("refusing broken", 0, {"- refusing: not on Sundays (", "- **FAILED** broken: RuntimeError: no such engine ("}),
        ("refusing ours", 1, {"- refusing: not on Sundays (", "- **FAILED** ours: RuntimeError: no such engine ("}),
    ],
    ids=["of others", "ours"],
)
def test_a_failure_of_this_package_makes_the_run_fail_and_a_refusal_is_shown(tmp_path, more, code, said):
    (tmp_path / "more_peers.py").write_text(PLUGIN)
    file, row = tmp_path / "forward.json", next(iter(ROWS))
    chosen = [f"bench/test_forward.py::test_forward[{row}-forward-{peer}]" for peer in ("plain", *more.split())]
    words = ["-q", "-p", "more_peers", "-p", "no:benchmark", "-p", "bench.stand_in", "-p", "no:cacheprovider", "--tiny"]
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = start("-m", "pytest", *words, f"--benchmark-json={file}", *chosen, MORE_PEERS=more, PYTHONPATH=path)
    assert done.returncode == code, done.stdout
    assert "not on Sundays" in done.stdout
    report.make(tmp_path)
    lines = (tmp_path / "report.md").read_text().split("## Not measured, and why")[1].splitlines()
    for start_of_line in said:
        assert any(line.startswith(start_of_line) and row in line for line in lines), lines
