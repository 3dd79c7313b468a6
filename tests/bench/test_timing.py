"""Rounds and budgets of time."""

from __future__ import annotations

import time

import pytest

from bench import timing
from bench.outcomes import Refused, Timed
from bench.runner import Budget, Runner
from bench.shapes import TINY
from tests.helpers.performance_suite import CPU, SHORT


@pytest.mark.parametrize("operator", TINY)
def test_rows_that_come_too_late_are_left_out_and_say_so(operator):
    begin, seconds = time.monotonic(), 1.0
    runner = Runner(CPU, Budget(seconds, 99), SHORT)
    outcomes = [runner.measure(TINY[operator], "call", ("plain", "automatic")) for _ in range(99)]
    late = [one["plain"] for one in outcomes if not isinstance(one["plain"], Timed)]
    assert all(isinstance(outcome, Timed) for outcome in outcomes[0].values())
    assert late and all(isinstance(outcome, Refused) and "budget" in outcome.reason for outcome in late)
    assert all(isinstance(outcome, Refused) for outcome in outcomes[-1].values())
    assert time.monotonic() - begin < seconds + 10  # all 99 took 19 to 30; a busy machine may stop for seconds


def test_rounds_are_interleaved():
    calls: list[str] = []
    steps = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    times = timing.interleaved(steps, CPU, seconds=0, rounds=timing.Rounds(4, 9))
    assert all(len(one) == 4 for one in times.values())
    rounds = [calls[i : i + 3] for i in range(3, len(calls), 3)]  # after the warm-up
    assert len(rounds) == 4 and all(sorted(one) == ["a", "b", "c"] for one in rounds)
