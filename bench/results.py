"""The results of a run, read from the JSON files of pytest-benchmark."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .peers import AUTOMATIC, PEERS, PLAIN

FILES = ("forward.json", "training.json", "memory.json")
KINDS = ("forward", "training")  # those with a row for every layer
# what data of another form than this suite's make Python raise
FOREIGN = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class Reason(NamedTuple):
    """Why a peer has no time in a row."""

    kind: str
    row: str
    peer: str
    reason: str
    failed: bool


@dataclass
class Results:
    """Medians in seconds by kind, row and peer, and everything else that a report says."""

    operator: str = ""
    machine: dict[str, str] = field(default_factory=dict)
    date: str = ""
    peaks: dict[str, dict[str, float]] = field(default_factory=dict)  # by dtype
    seconds: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    about: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    rounds: list[int] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)
    kept: list[dict[str, Any]] = field(default_factory=list)

    def rows(self, kind: str) -> dict[str, dict[str, float]]:
        """The medians of each row that was measured, by peer."""
        return self.seconds.get(kind, {})

    def dtypes(self, kind: str) -> dict[str, list[str]]:
        """The rows that were measured, by dtype."""
        found: dict[str, list[str]] = {}
        for row in self.rows(kind):
            found.setdefault(self.about[kind, row, PLAIN.name]["dtype"], []).append(row)
        return found

    def slower(self, kind: str, rows: Iterable[str], peer: str) -> list[float]:
        """The peer's time / the automatic choice's in each of `rows` in which both were measured."""
        medians = [self.rows(kind)[row] for row in rows]
        return [one[peer] / one[AUTOMATIC.name] for one in medians if {peer, AUTOMATIC.name} <= set(one)]

    def ratios(self, kind: str, row: str) -> dict[str, float]:
        """How many times as fast as plain PyTorch in this row each peer is: ratios of medians."""
        medians = self.rows(kind)[row]
        return {peer: medians[PLAIN.name] / seconds for peer, seconds in medians.items()}

    def best_alternative(self, kind: str, row: str) -> tuple[str, float]:
        """The fastest peer that is not ours, and its time / the automatic choice's: below 1 is a loss."""
        medians = self.rows(kind)[row]
        peer = min((name for name in medians if not PEERS[name].ours), key=medians.__getitem__)
        return peer, medians[peer] / medians[AUTOMATIC.name]


def read(folder: Path) -> Results:
    """Of the files that are there. Raises FileNotFoundError where there is none, ValueError naming the file where one
    is not as pytest-benchmark writes it for this suite."""
    files = [folder / name for name in FILES if (folder / name).exists()]
    if not files:
        raise FileNotFoundError(f"{folder} has none of {', '.join(FILES)}")
    results = Results()
    for file in files:
        try:
            _add(results, json.loads(file.read_text(encoding="utf-8")))
        except (OSError, *FOREIGN) as error:
            raise ValueError(f"{file} is not the results of a part of this suite: {error!r}") from error
    return results


def _add(results: Results, data: Any) -> None:
    """What one file holds."""
    results.machine, results.date = data["machine_info"], data["datetime"][:10]
    suite = data["suite"]
    results.operator = suite["operator"]
    results.peaks |= suite["peaks"]
    results.kept += suite["kept"]
    results.reasons += [Reason(*(entry[name] for name in Reason._fields)) for entry in suite["unserved"]]
    for entry in data["benchmarks"]:
        info = entry["extra_info"]
        kind, row, peer = info["kind"], info["row"], info["peer"]
        results.seconds.setdefault(kind, {}).setdefault(row, {})[peer] = statistics.median(entry["stats"]["data"])
        results.rounds.append(entry["stats"]["rounds"])
        results.about[kind, row, peer] = info
