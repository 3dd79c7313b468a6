"""The session of a benchmark run: measures a row when its first peer is asked for, and plays each peer's rounds to
pytest-benchmark. Started by `python -m bench`, or by hand: `pytest bench/test_forward.py --benchmark-json=FILE`. A
session is of one operator, the others' rows are deselected."""

from __future__ import annotations

import sys
import traceback
from dataclasses import replace
from typing import Any

import pytest
import torch

try:
    from tqdm import tqdm
except ImportError:  # a machine without a network has what it has
    tqdm = None

from bench import limits, machine, memory
from bench.outcomes import Failed, Outcome, Timed
from bench.recorded import play
from bench.runner import Budget, Runner
from bench.shapes import OPERATORS, ROWS, TINY, Row
from bench.timing import ROUNDS, Rounds

_ALL_ROWS = {**ROWS, **{row.name: row for row in (*TINY.values(), *memory.NETWORKS.values())}}


def pytest_addoption(parser):
    group = parser.getgroup("film_kernels benchmarks")
    group.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where to run (default: %(default)s)")
    group.addoption("--operator", default=OPERATORS[0], choices=OPERATORS, help="whose rows (default: %(default)s)")
    group.addoption("--seconds", type=float, default=240.0, help="rows that would begin later are left out")
    group.addoption(
        "--tiny", action="store_true", help="a few positions and rounds, nothing compiled: to try the suite itself"
    )


class Suite:
    """What was measured in this session, and what was not and why."""

    def __init__(self, config: pytest.Config) -> None:
        self.device = torch.device(config.getoption("--device"))
        self.operator: str = config.getoption("--operator")
        self.seconds: float = config.getoption("--seconds")
        self.tiny: bool = config.getoption("--tiny")
        self.rounds = Rounds(least=2, most=3) if self.tiny else ROUNDS
        self.unserved: list[dict[str, Any]] = []
        self.kept: list[dict[str, Any]] = []  # bytes that autograd keeps, by test_memory.py
        self.rows: list[tuple[str, ...]] = []  # (kind, row) of everything collected
        self._measured: dict[tuple[str, str], dict[str, Outcome]] = {}
        self._runner: Runner | None = None
        self._bar: Any = None

    @property
    def runner(self) -> Runner:
        """Its budget runs from the first use."""
        if self._runner is None:
            self._runner = Runner(self.device, Budget(self.seconds, len(self.rows)), self.rounds, not self.tiny)
        return self._runner

    def row(self, name: str) -> Row:
        """The row of that name, in this session's size."""
        return replace(_ALL_ROWS[name], tiny=self.tiny)

    def is_anothers(self, name: str) -> bool:
        """Whether the row of that name is of another operator or device than this session."""
        row = _ALL_ROWS[name]
        return row.case.operator != self.operator or (row.only_gpu and self.device.type == "cpu")

    def advance(self, row: str) -> None:
        """One row further on the progress bar."""
        if tqdm is None:
            print(f"{row}: done", file=sys.__stderr__, flush=True)
            return
        if self._bar is None:  # beside pytest's own output, which is captured
            interval = 0.1 if sys.__stderr__ is not None and sys.__stderr__.isatty() else 20.0
            self._bar = tqdm(total=len(self.rows), unit="row", file=sys.__stderr__, mininterval=interval)
        self._bar.set_description(row, refresh=False)
        self._bar.update()

    def outcome(self, kind: str, row: str, peer: str, names: tuple[str, ...]) -> Outcome:
        """Of one peer; the first one asked for has the whole row measured."""
        if (kind, row) not in self._measured:
            try:
                found = self._measure(kind, row, names)
            except Exception as error:
                traceback.print_exc()
                found = dict.fromkeys(names, Failed(f"the row could not be measured: {error!r}", fatal=True))
            self._measured[kind, row] = found
            self.advance(row)
        return self._measured[kind, row][peer]

    def _measure(self, kind: str, row: str, names: tuple[str, ...]) -> dict[str, Outcome]:
        if kind == "network":
            return memory.measure_networks(self.row(row), names, self.device, self.runner.budget.left(), self.rounds)
        return self.runner.measure(self.row(row), kind, names)

    def close(self) -> None:
        """The progress bar is done."""
        if self._bar is not None:
            self._bar.close()

    def as_json(self) -> dict[str, Any]:
        """What pytest-benchmark's file has besides the times."""
        measured = {str(dtype).removeprefix("torch."): peaks._asdict() for dtype, peaks in limits.MEASURED.items()}
        return {
            "operator": self.operator, "device": self.device.type, "peaks": measured, "unserved": self.unserved,
            "kept": self.kept,
        }  # fmt: skip


_SUITE = pytest.StashKey[Suite]()


def pytest_configure(config):
    config.stash[_SUITE] = Suite(config)


def pytest_collection_modifyitems(config, items):
    suite = config.stash[_SUITE]
    own, others = [], []
    for item in items:
        row = _parameters(item).get("row")
        (others if row is not None and suite.is_anothers(row) else own).append(item)
    config.hook.pytest_deselected(items=others)
    items[:] = own
    named = [found for item in own if "row" in (found := _parameters(item))]
    suite.rows = list(dict.fromkeys((params.get("kind", ""), params["row"]) for params in named))


def _parameters(item: pytest.Item) -> dict[str, Any]:
    return item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}


@pytest.fixture
def suite(request):
    """The session's Suite."""
    return request.config.stash[_SUITE]


@pytest.fixture
def measured(request, suite):
    """`measured(kind, row, peer, names)`: the row is measured, and the peer's rounds are played to pytest-benchmark.

    A peer that refuses is skipped. One that fails makes the run fail, or, where it is other people's software, is
    marked as such (x). The report has both, with their reasons."""

    def play_outcome(kind: str, row: str, peer: str, names: tuple[str, ...]) -> None:
        outcome = suite.outcome(kind, row, peer, names)
        if not isinstance(outcome, Timed):
            failed = isinstance(outcome, Failed)
            suite.unserved.append({"kind": kind, "row": row, "peer": peer, "reason": outcome.reason, "failed": failed})
            if not isinstance(outcome, Failed):
                pytest.skip(outcome.reason)
            (pytest.fail if outcome.fatal else pytest.xfail)(outcome.reason)
        benchmark = request.getfixturevalue("benchmark")
        benchmark.group = f"{kind}, {row}"
        benchmark.extra_info.update(kind=kind, row=row, peer=peer, **outcome.about)
        play(benchmark, outcome.times)

    return play_outcome


def pytest_sessionfinish(session):
    session.config.stash[_SUITE].close()


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_generate_machine_info(config):
    return machine.describe(config.stash[_SUITE].device)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_commit_info(commit_info):
    for name in set(commit_info) - {"id", "time", "dirty"}:
        del commit_info[name]


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config, output_json):
    output_json["suite"] = config.stash[_SUITE].as_json()
