"""The report of a run: `python -m bench.report FOLDER` makes report.md and chart.png there from the JSON files."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from .peers import AUTOMATIC
from .results import FILES, FOREIGN, KINDS, Results, read
from .tables import kept_table, means_table, overhead, speed_table

REPORT, CHART = "report.md", "chart.png"
__all__ = ["CHART", "FILES", "REPORT", "headline", "machine_line", "main", "make", "summary"]
_TITLES = {"forward": "Forward (inference)", "training": "Training step (forward and backward)"}


def make(folder: Path) -> list[str]:
    """Write the report, with a chart where matplotlib is installed, and return its summary.

    Raises FileNotFoundError without any JSON file, ValueError where what is in one is not this suite's, OSError where
    the report cannot be written."""
    results = read(folder)
    try:
        _write(results, folder)
        return summary(results)
    except FOREIGN as error:
        raise ValueError(f"{folder} has results that cannot be reported: {error!r}") from error


def _write(results: Results, folder: Path) -> None:
    chart = ""
    try:
        from . import chart as drawing
    except ModuleNotFoundError as error:
        chart = f"(No chart: {error.name} is not installed.)"
    else:
        if any(results.rows(kind) for kind in KINDS):
            drawing.draw(results, folder / CHART)
            chart = f"![How many times as fast as plain PyTorch]({CHART})"
    (folder / REPORT).write_text("\n\n".join([*_parts(results), chart]).strip() + "\n")


def headline(results: Results, kind: str) -> str:
    """One sentence on the automatic choice in all rows of `kind`."""
    complete = [row for row, medians in results.rows(kind).items() if AUTOMATIC.name in medians]
    if not complete:
        return f"{kind}: nothing was measured"
    ratios = [results.ratios(kind, row)[AUTOMATIC.name] for row in complete]
    against = {row: results.best_alternative(kind, row) for row in complete}
    losses = {row: found for row, found in against.items() if found[1] < 1}
    means = f"median {statistics.median(ratios):.2f}, geometric mean {statistics.geometric_mean(ratios):.2f}"
    said = (
        f"{kind}: {min(ratios):.2f} to {max(ratios):.2f} times as fast as plain PyTorch ({means}), "
        f"faster in {sum(ratio > 1 for ratio in ratios)} of {len(ratios)} rows"
    )
    if not losses:
        return f"{said}; no alternative is faster in any row"
    worst = min(losses, key=lambda row: losses[row][1])
    peer, ratio = losses[worst]
    loss = (
        f"**LOSES in {len(losses)} of {len(complete)} rows** to the best alternative, most in {worst} ({ratio:.2f} of "
    )
    return f"{said}; {loss}{peer}'s speed)"


def summary(results: Results) -> list[str]:
    """A few lines for the end of a run."""
    lines = [machine_line(results)]
    lines += [headline(results, kind) for kind in KINDS]
    lines += [line for _, line in overhead(results)]
    return lines + _network_lines(results)


def machine_line(results: Results) -> str:
    """The machine, the versions and the day."""
    return ", ".join(f"{name} {value}" for name, value in results.machine.items()) + f"; {results.date}"


def _parts(results: Results) -> list[str]:
    name = results.machine.get("device", "?")
    rounds = f"{min(results.rounds)} to {max(results.rounds)} rounds" if results.rounds else "no rounds"
    parts = [
        f"# Performance of {results.operator} on {name}",
        machine_line(results) + ".",
        "\n".join(f"- {headline(results, kind)}" for kind in KINDS if results.rows(kind)),
        "Columns of peers: how many times as fast as plain PyTorch in the same row, a ratio of medians; all peers of a "
        f"row were timed in turn, in {rounds}, after their results were checked. *against*: the time of the fastest "
        "alternative that is not this package's / the automatic choice's. *limit*: the share of the machine's limit "
        f"that the automatic choice reaches, {_limit(results)}.",
    ]
    if any(results.rows(kind) for kind in KINDS):
        parts += ["## Geometric means", means_table(results)]
    for kind in KINDS:
        if results.rows(kind):
            parts += [f"## {_TITLES[kind]}", speed_table(results, kind)]
    if calls := overhead(results):
        parts += ["## What a call costs before anything is computed", *(part for part, _ in calls)]
    if results.kept:
        parts += ["## What autograd keeps for a layer's backward, in bytes", kept_table(results)]
    if network := _network_lines(results):
        parts += ["## A network of 16 layers, training step", "\n".join(f"- {line}" for line in network)]
    if results.reasons:
        parts += ["## Not measured, and why", _reasons(results)]
    return parts


def _network_lines(results: Results) -> list[str]:
    lines = []
    for row, medians in results.rows("network").items():
        plain = results.about["network", row, "plain"]
        for peer, seconds in medians.items():
            about = results.about["network", row, peer]
            line = f"{row}, {peer}: {medians['plain'] / seconds:.2f} times as fast as plain; autograd keeps "
            line += (
                f"{about['kept_bytes'] / 2**20:,.1f} MiB (plain / this {plain['kept_bytes'] / about['kept_bytes']:.2f})"
            )
            if about["peak_bytes"] is not None:
                line += f"; peak of a step {about['peak_bytes'] / 2**20:,.0f} MiB (plain / this "
                line += f"{plain['peak_bytes'] / about['peak_bytes']:.2f})"
            lines.append(line)
    return lines


def _limit(results: Results) -> str:
    """What it is, and what was measured for it."""
    copies = [about["copy"] / 1e9 for about in results.about.values() if "copy" in about]
    if copies:
        return (
            "passes over memory at the speed of a copy of the row's own input / time, which was timed in turn with the "
            f"peers ({min(copies):.3g} to {max(copies):.3g} GB/s). Forward has 3 passes, a training step 8; 2 and 5 "
            "where a group fits a core's second-level cache. There is none for rows that lie in these caches"
        )
    return (
        "max(FLOPs / peak, bytes / bandwidth) / time, which caches and Winograd's algorithm can lift above 100%; "
        f"measured in the same run: {_peaks(results)}"
    )


def _peaks(results: Results) -> str:
    said = [
        f"{dtype} {peak['flops'] / 1e12:.3g} TFLOP/s and {peak['bandwidth'] / 1e9:.3g} GB/s"
        for dtype, peak in results.peaks.items()
    ]
    return "; ".join(said) or "none"


def _reasons(results: Results) -> str:
    """A line for each reason, with the peers that it holds for in the same rows."""
    places: dict[tuple[str, str, bool], list[str]] = {}
    for kind, row, peer, reason, failed in results.reasons:
        places.setdefault((peer, reason, failed), []).append(f"{row} {kind}")
    peers: dict[tuple[str, bool, tuple[str, ...]], list[str]] = {}
    for (peer, reason, failed), where in places.items():
        peers.setdefault((reason, failed, tuple(where)), []).append(peer)
    lines = []
    for (reason, failed, rows), names in peers.items():
        said = ", ".join(rows) if failed or len(rows) <= 4 or len(names) > 2 else f"{len(rows)} rows"
        lines.append(f"- {'**FAILED** ' if failed else ''}{', '.join(names)}: {reason} ({said})")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0, or 1 where there is no report to be made of what is in the folder."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description="Makes the report of a run again.")
    parser.add_argument("folder", type=Path, help="with the JSON files of a run")
    folder = parser.parse_args(argv).folder
    try:
        print("\n".join(make(folder)))
    except (OSError, ValueError) as error:
        print(f"no report: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
