"""How rounds that were measured interleaved become pytest-benchmark's.

pytest-benchmark runs all rounds of one function before the next function's. So the rounds are measured first
(timing.py), and then played to it: each test says `timer=CLOCK`, and its function moves that clock on by what the round
took. A GPU's times, which come from events and not from a clock, reach it the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class _Clock:
    """Stands still, except when it is told how long a round took. Called, it says the time in seconds."""

    __name__ = "recorded"

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def round_of(self, seconds: float) -> None:
        self.now = seconds


CLOCK = _Clock()


def play(benchmark: Any, times: Sequence[float]) -> None:
    """Hand `times`, the seconds of each round, to pytest-benchmark's fixture of a test marked `timer=CLOCK`."""
    coming = iter(times)

    def setup() -> tuple[tuple[float], dict[str, Any]]:
        CLOCK.now = 0.0
        return (next(coming),), {}

    benchmark.pedantic(CLOCK.round_of, setup=setup, rounds=len(times))
