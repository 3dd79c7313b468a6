"""The chart of a run: a bar for each layer and peer, how many times as fast as plain PyTorch."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from .peers import AUTOMATIC, PEERS
from .results import KINDS, Results

# `reference` is plain PyTorch through the front door: in the table only.
_LEFT_OUT = ("plain", "reference")
_COLOURS = {
    "automatic": "#d62728", "cpu": "#ff9896", "triton": "#ff7f0e", "cuda": "#8c564b", "vendor": "#e7cb94",
    "plain channels_last": "#17becf", "cuDNN graph": "#2ca02c", "torch.compile": "#1f77b4", "max-autotune": "#9467bd",
    "onnxruntime": "#bcbd22", "OpenVINO": "#e377c2",
}  # fmt: skip
_TITLES = {"forward": "Forward (inference)", "training": "Training step"}
_TICKS = (0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 8, 16, 32)


def draw(results: Results, file: Path) -> None:
    """Write a PNG file: a panel for each kind that was measured, its layers sorted by the automatic choice's ratio."""
    kinds = [kind for kind in KINDS if results.rows(kind)]
    peers = [name for name in PEERS if name not in _LEFT_OUT and any(_measured(results, kind, name) for kind in kinds)]
    most = max(len(results.rows(kind)) for kind in kinds)
    width = 5.2 + 0.06 * max(
        len(row) for kind in kinds for row in results.rows(kind)
    )  # a name is written beside its bars
    figure = Figure(figsize=(width * len(kinds), 2 + 0.105 * most * (len(peers) + 1.5)), layout="constrained")
    for axis, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        _panel(axis, results, kind, peers)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=max(min(len(labels), 5), 1), fontsize=10)
    about = [results.machine.get("device", "?"), results.date]
    if "threads" in results.machine:
        about.insert(1, f"threads: {results.machine['threads']}")
    figure.suptitle(
        f"{results.operator}: speed relative to plain PyTorch {results.machine.get('torch', '')}: {', '.join(about)}",
        fontsize=13,
    )
    figure.savefig(file, format="png", dpi=90)


def _measured(results: Results, kind: str, peer: str) -> bool:
    return any(peer in medians for medians in results.rows(kind).values())


def _panel(axis, results: Results, kind: str, peers: list[str]) -> None:
    ratios = {row: results.ratios(kind, row) for row in results.rows(kind)}
    rows = sorted(ratios, key=lambda row: ratios[row].get(AUTOMATIC.name, 0.0))  # the slowest at the bottom
    height = 0.84 / max(len(peers), 1)  # none where the time was spent before any was measured
    for place, peer in enumerate(peers):
        shown = [(at, ratios[row][peer]) for at, row in enumerate(rows) if peer in ratios[row]]
        # A bar begins at 1: to the right it is faster than plain PyTorch, to the left slower.
        axis.barh(
            [at + 0.42 - height * (place + 0.5) for at, _ in shown], [ratio - 1 for _, ratio in shown], height,
            left=1.0, color=_COLOURS.get(peer, "grey"), label=peer,
        )  # fmt: skip
    for at in range(0, len(rows), 2):
        axis.axhspan(at - 0.5, at + 0.5, color="0.94", zorder=0)
    axis.axvline(1.0, color="black", linewidth=1.2)
    axis.set_xscale("log")
    values = [ratio for row in rows for peer, ratio in ratios[row].items() if peer in peers]
    low, high = min([*values, 0.8]) * 0.93, max([*values, 1.25]) * 1.07
    axis.set(title=_TITLES[kind], xlabel="times as fast as plain PyTorch (right of 1: faster)", xlim=(low, high))
    axis.xaxis.set_major_locator(FixedLocator([tick for tick in _TICKS if low <= tick <= high]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_yticks(range(len(rows)), rows)
    axis.set_ylim(-0.5, len(rows) - 0.5)
    axis.grid(axis="x", alpha=0.4)
