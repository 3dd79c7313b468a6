"""The tables of a report, in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from .peers import AUTOMATIC, PEERS, PLAIN
from .results import KINDS, Results


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown; the first column is text, the others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def means_table(results: Results) -> str:
    """For each kind of step and dtype: how much slower than the automatic choice plain PyTorch and the others are, as
    geometric means, and the automatic choice's share of the limit, where memory is one."""
    rivals = [name for name, peer in PEERS.items() if not peer.ours]
    of_kinds = {(kind, dtype): rows for kind in KINDS for dtype, rows in results.dtypes(kind).items()}
    rivals = [name for name in rivals if any(results.slower(kind, rows, name) for (kind, _), rows in of_kinds.items())]
    body = []
    for (kind, dtype), rows in of_kinds.items():
        cells = [_mean_and_least(results.slower(kind, rows, name), len(rows)) for name in rivals]
        found = [_about_automatic(results, kind, row).get("share_of_limit") for row in rows]
        shares = [share for share in found if share is not None]
        limit = f"{statistics.geometric_mean(shares):.0%}, least {min(shares):.0%}" if shares else "-"
        body.append([f"{kind}, {dtype}", str(len(rows)), *cells, limit])
    return table(["step", "rows", *(f"{name} / automatic" for name in rivals), "limit"], body)


def _mean_and_least(ratios: Sequence[float], rows: int) -> str:
    """And in how many of `rows`, where it is not all."""
    if not ratios:
        return "-"
    said = f"{statistics.geometric_mean(ratios):.2f}, least {min(ratios):.2f}"
    return said if len(ratios) == rows else f"{said} ({len(ratios)} rows)"


def _about_automatic(results: Results, kind: str, row: str) -> dict[str, Any]:
    return results.about.get((kind, row, AUTOMATIC.name), {})


def speed_table(results: Results, kind: str) -> str:
    """A row for each layer, a column for each peer."""
    rows = results.rows(kind)
    peers = [name for name in PEERS if name != PLAIN.name and any(name in medians for medians in rows.values())]
    body = []
    for row, medians in rows.items():
        ratios = results.ratios(kind, row)
        cells = [f"{ratios[peer]:.2f}" if peer in ratios else "-" for peer in peers]
        about = _about_automatic(results, kind, row)
        about_plain = results.about[kind, row, PLAIN.name]
        verdict, limit = "not measured", "-"
        if about:
            cells[peers.index(AUTOMATIC.name)] += f" ({about['backend']})"
            other, ratio = results.best_alternative(kind, row)
            verdict = f"**LOSES** to {other}: {ratio:.2f}" if ratio < 1 else f"{other}: {ratio:.2f}"
            limit = "-" if about["share_of_limit"] is None else f"{about['share_of_limit']:.0%}"
        body.append(
            [row, about_plain["shape"], about_plain["dtype"], f"{medians['plain'] * 1e3:.3g}", *cells, verdict, limit]
        )
    return table(["layer", "sizes", "dtype", "plain, ms", *peers, "against", "limit"], body)


def overhead(results: Results) -> list[tuple[str, str]]:
    """(a table, a line) for each kind of call that was measured."""
    found = []
    for kind, title in (("call", "inference"), ("recorded call", "recorded by autograd")):
        medians = next(iter(results.rows(kind).values()), None)
        if medians is None:
            continue
        ratio = medians[PLAIN.name] / medians[AUTOMATIC.name] if AUTOMATIC.name in medians else 0.0
        verdict = f"plain / automatic {ratio:.2f}" if ratio >= 1 else f"**LOSES**: plain / automatic {ratio:.2f}"
        cells = [f"{seconds * 1e6:.1f}" for seconds in medians.values()]
        found.append((table([f"{title}, µs", *medians, "verdict"], [["a call", *cells, verdict]]),
                      f"overhead of a call, {title}: {verdict}"))  # fmt: skip
    return found


def kept_table(results: Results) -> str:
    """A row for each layer, a column for each peer that was tried."""
    peers = list(dict.fromkeys(entry["peer"] for entry in results.kept if entry["bytes"] is not None))
    rows: dict[str, dict[str, int]] = {}
    for entry in results.kept:
        if entry["bytes"] is not None:
            rows.setdefault(entry["row"], {})[entry["peer"]] = entry["bytes"]
    body = []
    for row, kept in rows.items():
        cells = [f"{kept[peer]:,}" if peer in kept else "-" for peer in peers]
        body.append([row, *cells, _less(kept[PLAIN.name], kept[AUTOMATIC.name])])
    return table(["layer", *peers, "plain / automatic"], body)


def _less(plain: int, ours: int) -> str:
    return f"{plain / ours:.1f}" if ours else ("nothing kept" if plain else "nothing kept by either")
