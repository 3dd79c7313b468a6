"""The chart of `python -m bench.models`: how many times as fast as plain PyTorch each model is in each way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from .exported import RUNTIMES
from .model_ways import INFERENCE, KINDS, PLAIN, WAYS

_MARKS = {  # colour and shape
    "fuse": ("#d62728", "o"), "fuse(convolutions=True)": ("#ff7f0e", "s"),
    "fuse(convolutions=True, frozen=True)": ("#8c564b", "D"), "torch.compile": ("#1f77b4", "^"),
    'torch.compile(backend="film_kernels")': ("#9467bd", "v"), "onnxruntime": ("#2ca02c", "P"),
    "OpenVINO": ("#17becf", "X"),
}  # fmt: skip
_TICKS = (0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 4, 8)


def draw(data: Mapping[str, Any], file: Path) -> None:
    """Write a PNG file: a panel for each kind of step, a row for each model. `data` is what models.json holds."""
    models = {name: one for name, one in data["models"].items() if "times" in one}
    figure = Figure(figsize=(15, 2.4 + 0.4 * len(models)), layout="constrained")
    handles: dict[str, Any] = {}
    for axis, kind in zip(figure.subplots(1, len(KINDS), sharey=True), KINDS, strict=True):
        handles |= _panel(axis, models, kind)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=10)
    about = data["machine"]
    figure.suptitle(f"Whole models: speed relative to plain PyTorch {about.get('torch')}, {about.get('device')}, "
                    f"threads: {about.get('threads')}", fontsize=13)  # fmt: skip
    figure.savefig(file, format="png", dpi=90)


def _ratios(one: Mapping[str, Any], kind: str) -> dict[str, float]:
    rows = {way: row for way, row in one["times"].get(kind, {}).items() if way != PLAIN and way in WAYS}
    if kind == INFERENCE:
        rows |= {peer: row for peer, row in one.get("peers", {}).items() if peer in RUNTIMES}
    return {way: row["plain"] / row["seconds"] for way, row in rows.items() if "seconds" in row}


def _panel(axis: Any, models: Mapping[str, Any], kind: str) -> dict[str, Any]:
    found = {name: _ratios(one, kind) for name, one in models.items()}
    handles = {}
    for way, (colour, shape) in _MARKS.items():
        shown = [(ratios[way], at) for at, ratios in enumerate(found.values()) if way in ratios]
        if shown:
            handles[way] = axis.scatter(*zip(*shown, strict=True), c=colour, marker=shape, s=48, label=way, zorder=3)
    for at in range(0, len(found), 2):
        axis.axhspan(at - 0.5, at + 0.5, color="0.94", zorder=0)
    axis.axvline(1.0, color="black", linewidth=1.2)
    axis.set_xscale("log")
    values = [ratio for ratios in found.values() for ratio in ratios.values()]
    low, high = min([*values, 0.8]) * 0.95, max([*values, 1.25]) * 1.05
    axis.set(title=kind, xlabel="times as fast as plain PyTorch (right of 1: faster)", xlim=(low, high))
    axis.xaxis.set_major_locator(FixedLocator([tick for tick in _TICKS if low <= tick <= high]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_yticks(range(len(found)), list(found))
    axis.set_ylim(len(found) - 0.5, -0.5)
    axis.grid(axis="x", alpha=0.4)
    return handles
