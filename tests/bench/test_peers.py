"""Every result is checked before it is timed."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace

import pytest
import torch

from bench import check, timing
from bench.outcomes import Failed, Refused, Timed
from bench.peers import AUTOMATIC, PEERS, PLAIN, Peer
from bench.runner import Budget, Runner, checked
from bench.shapes import CONV_CASES, ROWS, Row
from bench.work import make
from tests.helpers.performance_suite import CPU, SHORT, TINY_NORM, TINY_ROW

COMPILED = tuple(name for name, peer in PEERS.items() if peer.compiled and not peer.alone)
EXPORTED = [
    pytest.param(name, marks=pytest.mark.skipif(importlib.util.find_spec(module) is None, reason="not installed"))
    for name, module in (("onnxruntime", "onnxruntime"), ("OpenVINO", "openvino"))
]


class WrongGradient(torch.autograd.Function):
    """The identity, with a gradient twice as large."""

    @staticmethod
    def forward(ctx, y):
        return y.clone()

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def altered(change):
    """A peer that changes plain PyTorch's output, and the number of its calls so far."""
    calls = []

    def build(work):
        def call(input):
            calls.append(1)
            return change(work.row.case.plain(input, **work.parameters))

        return call

    return Peer("altered", build, ours=True), calls


def one_corner(y):
    corner = torch.zeros_like(y)
    corner[..., -1] = 0.01
    return y + corner


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("forward", one_corner, "output is wrong"),
        ("forward", lambda y: y * float("nan"), "output is wrong"),
        ("forward", lambda y: y[:, 1:], "output has shape"),
        ("training", WrongGradient.apply, "grad_input is wrong"),
    ],
)
@pytest.mark.parametrize("row", [TINY_ROW, Row(CONV_CASES[-1], tiny=True), TINY_NORM], ids=lambda row: row.name)
def test_a_wrong_peer_is_caught_and_never_timed(monkeypatch, known_peaks, row, kind, change, said):
    peer, calls = altered(change)
    monkeypatch.setitem(PEERS, "altered", peer)
    outcomes = Runner(CPU, Budget(5, 1), SHORT).measure(row, kind, ("plain", "altered"))
    assert isinstance(outcomes["plain"], Timed)
    assert isinstance(outcomes["altered"], Failed) and outcomes["altered"].fatal
    assert said in outcomes["altered"].reason
    assert len(calls) == 1


@pytest.mark.parametrize("name", ROWS)
def test_plain_pytorch_passes_its_own_check(name):
    work = make(replace(ROWS[name], tiny=True), CPU)
    assert callable(checked(PLAIN, work, "training", check.expect(work, "training")))


@pytest.mark.parametrize("name", ROWS)
def test_the_packages_function_gets_what_plain_pytorch_computes(name):
    work = make(replace(ROWS[name], tiny=True), CPU)
    assert callable(checked(AUTOMATIC, work, "training", check.expect(work, "training")))


def test_compiled_peers_are_right_and_timed(known_peaks):
    runner = Runner(CPU, Budget(600, 1), SHORT)
    outcomes = runner.measure(TINY_ROW, "forward", ("plain", *COMPILED))
    assert all(isinstance(outcome, Timed) for outcome in outcomes.values()), outcomes
    assert len({len(outcome.times) for outcome in outcomes.values()}) == 1


def test_what_is_compiled_of_a_norm_is_right_and_there_is_nothing_to_tune():
    outcomes = Runner(CPU, Budget(600, 1), SHORT).measure(TINY_NORM, "training", ("plain", *COMPILED))
    assert isinstance(outcomes["torch.compile"], Timed), outcomes
    assert isinstance(outcomes["max-autotune"], Refused)


@pytest.mark.parametrize("name", EXPORTED)
@pytest.mark.parametrize("row", [TINY_ROW, Row(CONV_CASES[-1], tiny=True), TINY_NORM], ids=lambda row: row.name)
def test_what_is_exported_is_right_and_timed(known_peaks, row, name):
    outcome = Runner(CPU, Budget(600, 1), SHORT).measure(row, "forward", ("plain", name))[name]
    assert isinstance(outcome, Timed), outcome


@pytest.mark.parametrize("name", EXPORTED)
def test_what_is_exported_refuses_what_it_is_not_measured_in(name):
    for row, word in ((replace(TINY_ROW, half=True), "float32"), (replace(TINY_ROW, channels_last=True), "formats")):
        outcome = checked(PEERS[name], make(row, CPU), "forward", None)
        assert isinstance(outcome, Refused) and word in outcome.reason
    outcome = checked(PEERS[name], make(TINY_ROW, CPU), "training", None)
    assert isinstance(outcome, Refused) and "backward" in outcome.reason


def test_a_runtime_that_is_missing_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    outcome = checked(PEERS["onnxruntime"], make(TINY_ROW, CPU), "forward", None)
    assert outcome == Refused("not installed: pip install onnxruntime")


def test_a_peer_with_threads_of_its_own_is_timed_by_itself(monkeypatch, known_peaks):
    order = []

    def noting(name):
        def build(work):
            def call(input):
                order.append(name)
                return work.row.case.plain(input, **work.parameters)

            return call

        return build

    monkeypatch.setattr(timing, "_UNTIL_AT_REST", 0.0)
    for name in ("by itself", "other", "another"):
        monkeypatch.setitem(PEERS, name, Peer(name, noting(name), alone=name == "by itself"))
    found = Runner(CPU, Budget(60, 1), SHORT).measure(TINY_ROW, "forward", ("plain", "by itself", "other", "another"))
    timed = len(found["by itself"].times)
    assert timed >= SHORT.least and order[-timed - 1 :] == ["by itself"] * (timed + 1)  # and a warm-up
    assert order.count("by itself") == timed + 2 and {"other", "another"} == set(order[3 : -timed - 1])
