"""Measures a row: peers are built, checked, and timed in turn, within the row's share of the time budget."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from .check import Expected, complaint, expect
from .limits import COPY, beside, share_of_limit
from .outcomes import Failed, Outcome, Refused, Timed, Untimed
from .peers import AUTOMATIC, PEERS, PLAIN, Peer, Unserved, call_of, chosen_backend
from .shapes import Row
from .timing import ROUNDS, Rounds, alone, call_overhead, interleaved, synchronize
from .work import CALLS, STEPS, Step, Work, make

_DROPPED = "the time budget was spent before this row"
# Seconds that compiling takes, by device and peer, until the first one has been timed.
_FIRST_GUESS = 5.0
_LONGER = {("cuda", "max-autotune"): 30.0}


def checked(peer: Peer, work: Work, kind: str, expected: Expected) -> Step | Untimed:
    """The step to be timed, after one run of it whose results were right; or why there is none.

    Raises what plain PyTorch raises."""
    try:
        call, own = call_of(peer, work, kind == "training")
        step = STEPS[kind](call, own)
        wrong = complaint(step(), expected)
    except Unserved as reason:
        return Refused(str(reason))
    except Exception as error:
        if peer is PLAIN:
            raise
        lines = str(error).strip().splitlines() or [""]
        return Failed(f"{type(error).__name__}: {lines[0]}", fatal=peer.ours)
    # Inductor's sums have been further off than what is allowed: no reason for this package's run to fail.
    return step if wrong is None else Failed(wrong, fatal=peer.ours)


class Budget:
    """Seconds until `end`, shared out evenly among the rows still to come."""

    def __init__(self, seconds: float, rows: int) -> None:
        self.end = time.monotonic() + seconds
        self.rows = rows

    def left(self) -> float:
        return self.end - time.monotonic()

    def next_row_until(self) -> float:
        """When the row that begins now should be done, on the monotonic clock."""
        now = time.monotonic()
        until = now + (self.end - now) / max(self.rows, 1)
        self.rows -= 1
        return until


class Runner:
    """`budget` covers all rows: what is too late is left out, and says so. `compiles`: whether there is time at all for
    the peers that torch.compile makes."""

    def __init__(
        self,
        device: torch.device,
        budget: Budget,
        rounds: Rounds = ROUNDS,
        compiles: bool = True,
    ) -> None:
        self.device = device
        self.budget = budget
        self.rounds = rounds
        self.compiles = compiles
        self._compiling = {
            name: _LONGER.get((device.type, name), _FIRST_GUESS) for name, peer in PEERS.items() if peer.compiled
        }
        self._compiler_is_warm = False
        if device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # the library at its best, for whoever uses it

    def measure(self, row: Row, kind: str, names: tuple[str, ...] = tuple(PEERS)) -> dict[str, Outcome]:
        """An Outcome for each peer in `names`. `kind` is one of work.STEPS.

        Raises what plain PyTorch raises; what any other peer raises is its Outcome.
        """
        if self.budget.left() <= 0:
            return dict.fromkeys(names, Refused(_DROPPED))
        until = self.budget.next_row_until()
        torch.compiler.reset()  # every row is a new shape of the same code
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        work = make(row, self.device)
        expected = expect(work, kind)
        outcomes: dict[str, Outcome] = {}
        steps: dict[str, Callable[[], object]] = {}
        for name in names:
            prepared = self._prepare(PEERS[name], work, kind, expected, until)
            if isinstance(prepared, Untimed):
                outcomes[name] = prepared
            else:
                steps[name] = prepared
        if kind in CALLS:
            others, timed = {}, call_overhead
        else:
            others, timed = beside(work), interleaved
        by_themselves = {name: steps.pop(name) for name in tuple(steps) if PEERS[name].alone}
        share = (until - time.monotonic()) / max(len(steps) + len(by_themselves), 1)
        times = timed({**steps, **others}, self.device, share * len(steps), self.rounds)
        for name, step in by_themselves.items():
            times[name] = alone(step, self.device, share, self.rounds)
        besides = {name: times.pop(name) for name in others}
        for name, own in times.items():
            outcomes[name] = Timed(own, self._about(work, kind, name, own, besides))
        return {name: outcomes[name] for name in names}

    def _prepare(self, peer: Peer, work: Work, kind: str, expected: Expected, until: float) -> Step | Untimed:
        """`checked`, unless there is no time to compile."""
        begin = time.monotonic()
        if peer.compiled:
            if not self.compiles:
                return Refused("this run does not compile")
            if until - begin < self._compiling[peer.name]:
                guess = self._compiling[peer.name]
                return Refused(f"compiling takes about {guess:.0f} s, more than was left of this row's time")
            begin = time.monotonic() if peer.alone else self._warm_the_compiler()
        prepared = checked(peer, work, kind, expected)
        if peer.compiled and not isinstance(prepared, Untimed):
            self._compiling[peer.name] = time.monotonic() - begin
        return prepared

    def _warm_the_compiler(self) -> float:
        """What torch.compile does once a process is no row's cost. Returns when the row's own compiling begins."""
        if not self._compiler_is_warm:
            self._compiler_is_warm = True
            try:
                torch.compile(torch.sin)(torch.ones(8, device=self.device))
            except Exception as error:  # without a compiler, say: every compiled peer will report it
                print(f"torch.compile does not work here: {error}")
            synchronize(self.device)
        return time.monotonic()

    def _about(
        self, work: Work, kind: str, name: str, times: list[float], besides: dict[str, list[float]]
    ) -> dict[str, object]:
        """What the report says of a timed peer beside its times. `besides`: the times of `limits.beside`."""
        about: dict[str, object] = {
            "dtype": str(work.input.dtype).removeprefix("torch."),
            "shape": work.row.case.described(tuple(work.input.shape)),
        }
        if name == AUTOMATIC.name:
            about["backend"] = chosen_backend(work)
        if kind not in CALLS:
            median = statistics.median(times)
            about["share_of_limit"] = share_of_limit(work.row, self.device, kind, median, besides)
        if COPY in besides:  # its bytes a second, read and written
            about["copy"] = 2 * work.input.nbytes / statistics.median(besides[COPY])
        return about
