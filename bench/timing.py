"""Interleaved timing: all peers in turn, round after round, so that whatever else the machine does hits all alike."""

from __future__ import annotations

import contextlib
import gc
import random
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch


class Rounds(NamedTuple):
    """How many rounds a row has: `least` whatever time is left, `most` whatever time there is."""

    least: int = 5
    most: int = 30


ROUNDS = Rounds()


_FLUSH_BYTES = 1 << 28  # more than any L2
# The GPU waits for about 2 ms meanwhile, in which the CPU gets ahead of it: what is timed is the GPU's work alone. What
# a call costs the CPU is another table (`call_overhead`).
_AHEAD_CYCLES = 4_000_000
_UNTIL_AT_REST = 0.2  # seconds
_CALLS_A_ROUND = 100  # of a call that costs microseconds


def synchronize(device: torch.device) -> None:
    """Waits until the GPU is done; nothing on the CPU."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def interleaved(
    steps: dict[str, Callable[[], object]], device: torch.device, seconds: float, rounds: Rounds
) -> dict[str, list[float]]:
    """Seconds that each step took, a list of rounds for each name; the same number for all.

    As many rounds as fit into `seconds` within `rounds`, each in another order. The CPU's times are the clock's; a
    GPU's lie between two events, with the L2 cache written over before each.
    """
    measure = _on_cpu if device.type == "cpu" else _OnGpu(device)
    return _rounds(steps, measure, seconds, rounds)


def call_overhead(
    steps: dict[str, Callable[[], object]], device: torch.device, seconds: float, rounds: Rounds
) -> dict[str, list[float]]:
    """The same for the time that the CPU spends in a call, on either device: nothing waits for the GPU meanwhile."""

    def measure(step: Callable[[], object]) -> float:
        synchronize(device)
        begin = time.perf_counter()
        for _ in range(_CALLS_A_ROUND):
            step()
        return (time.perf_counter() - begin) / _CALLS_A_ROUND

    return _rounds(steps, measure, seconds, rounds)


def alone(step: Callable[[], object], device: torch.device, seconds: float, rounds: Rounds) -> list[float]:
    """Seconds of each round of one step, with nothing between the rounds: for what has threads of its own, which look
    for work for a while when a call has ended. They are at rest before and afterwards."""
    time.sleep(_UNTIL_AT_REST)
    times = interleaved({"": step}, device, seconds, rounds)[""]
    time.sleep(_UNTIL_AT_REST)
    return times


def _rounds(
    steps: dict[str, Callable[[], object]],
    measure: Callable[[Callable[[], object]], float],
    seconds: float,
    rounds: Rounds,
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in steps}
    order, shuffle = list(steps), random.Random(0).shuffle
    begin = time.perf_counter()
    with _no_collection():
        for name in order:  # a warm-up
            measure(steps[name])
        for done in range(rounds.most):
            if done >= rounds.least and time.perf_counter() - begin > seconds:
                break
            shuffle(order)
            for name in order:
                times[name].append(measure(steps[name]))
    return times


def _on_cpu(step: Callable[[], object]) -> float:
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


class _OnGpu:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.module = torch.get_device_module(device)
        self.flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device)

    def __call__(self, step: Callable[[], object]) -> float:
        begin, end = (self.module.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()
        torch.cuda._sleep(_AHEAD_CYCLES)
        begin.record()
        step()
        end.record()
        self.module.synchronize(self.device)
        return begin.elapsed_time(end) / 1e3


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Python's garbage collector off: it would fall on whoever is being timed."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
