"""The report of a run: `python -m bench.report FOLDER` makes report.md and chart.png there from the JSON files."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from .peers import AUTOMATIC, PEERS
from .results import FILES, FOREIGN, KINDS, Results, read
from .shapes import TINY

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
    said = (
        f"{kind}: {min(ratios):.2f} to {max(ratios):.2f} times as fast as plain PyTorch (median "
        f"{statistics.median(ratios):.2f}), faster in {sum(ratio > 1 for ratio in ratios)} of {len(ratios)} rows"
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
    lines += [line for _, line in _overhead(results)]
    return lines + _network_lines(results)


def machine_line(results: Results) -> str:
    """The machine, the versions and the day."""
    return ", ".join(f"{name} {value}" for name, value in results.machine.items()) + f"; {results.date}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown; the first column is text, the others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _parts(results: Results) -> list[str]:
    name = results.machine.get("device", "?")
    rounds = f"{min(results.rounds)} to {max(results.rounds)} rounds" if results.rounds else "no rounds"
    parts = [
        f"# Performance on {name}",
        machine_line(results) + ".",
        "\n".join(f"- {headline(results, kind)}" for kind in KINDS if results.rows(kind)),
        "Columns of peers: how many times as fast as plain PyTorch in the same row, a ratio of medians; all peers of a "
        f"row were timed in turn, in {rounds}, after their results were checked. *against*: the time of the fastest "
        "alternative that is not this package's / the automatic choice's. *limit*: the share of the machine's limit "
        "that the automatic choice reaches, max(FLOPs / peak, bytes / bandwidth) / time, which caches and Winograd's "
        f"algorithm can lift above 100%; measured in the same run: {_peaks(results)}.",
    ]
    for kind in KINDS:
        if results.rows(kind):
            parts += [f"## {_TITLES[kind]}", _speed_table(results, kind)]
    if overhead := _overhead(results):
        parts += ["## What a call costs before anything is computed", *(part for part, _ in overhead)]
    if results.kept:
        parts += ["## What autograd keeps for a layer's backward, in bytes", _kept_table(results)]
    if network := _network_lines(results):
        parts += ["## A network of 16 layers, training step", "\n".join(f"- {line}" for line in network)]
    if results.reasons:
        parts += ["## Not measured, and why", _reasons(results)]
    return parts


def _speed_table(results: Results, kind: str) -> str:
    rows = results.rows(kind)
    peers = [name for name in PEERS if name != "plain" and any(name in medians for medians in rows.values())]
    body = []
    for row, medians in rows.items():
        ratios = results.ratios(kind, row)
        cells = [f"{ratios[peer]:.2f}" if peer in ratios else "-" for peer in peers]
        about = results.about.get((kind, row, AUTOMATIC.name))
        about_plain = results.about[kind, row, "plain"]
        verdict, limit = "not measured", "-"
        if about is not None:
            cells[peers.index(AUTOMATIC.name)] += f" ({about['backend']})"
            other, ratio = results.best_alternative(kind, row)
            verdict = f"**LOSES** to {other}: {ratio:.2f}" if ratio < 1 else f"{other}: {ratio:.2f}"
            limit = f"{about['share_of_limit']:.0%}"
        body.append(
            [row, about_plain["shape"], about_plain["dtype"], f"{medians['plain'] * 1e3:.3g}", *cells, verdict, limit]
        )
    return table(["layer", "input -> weight", "dtype", "plain, ms", *peers, "against", "limit"], body)


def _overhead(results: Results) -> list[tuple[str, str]]:
    """(a table, a line) for each kind of call that was measured."""
    found = []
    for kind, title in (("call", "inference"), ("recorded call", "recorded by autograd")):
        medians = results.rows(kind).get(TINY.name)
        if medians is None:
            continue
        ratio = medians["plain"] / medians[AUTOMATIC.name] if AUTOMATIC.name in medians else 0.0
        verdict = f"plain / automatic {ratio:.2f}" if ratio >= 1 else f"**LOSES**: plain / automatic {ratio:.2f}"
        cells = [f"{seconds * 1e6:.1f}" for seconds in medians.values()]
        found.append((table([f"{title}, µs", *medians, "verdict"], [["a call", *cells, verdict]]),
                      f"overhead of a call, {title}: {verdict}"))  # fmt: skip
    return found


def _kept_table(results: Results) -> str:
    peers = list(dict.fromkeys(entry["peer"] for entry in results.kept if entry["bytes"] is not None))
    rows: dict[str, dict[str, int]] = {}
    for entry in results.kept:
        if entry["bytes"] is not None:
            rows.setdefault(entry["row"], {})[entry["peer"]] = entry["bytes"]
    body = []
    for row, kept in rows.items():
        cells = [f"{kept[peer]:,}" if peer in kept else "-" for peer in peers]
        body.append([row, *cells, _less(kept["plain"], kept[AUTOMATIC.name])])
    return table(["layer", *peers, "plain / automatic"], body)


def _less(plain: int, ours: int) -> str:
    return f"{plain / ours:.1f}" if ours else ("nothing kept" if plain else "nothing kept by either")


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
