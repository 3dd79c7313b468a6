"""The report of `python -m bench.models`, in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .exported import RUNTIMES
from .model_ways import INFERENCE, KINDS, PLAIN, TRAINING, WAYS
from .tables import table

_SLOWER = 0.98  # plain / fused below which a model counts as slower for being fused
_NOT_FASTER = "not faster here"  # how such a reason begins
_OURS = tuple(name for name in WAYS if "fuse" in name or "film_kernels" in name)
_OTHERS = tuple(name for name in WAYS if name != PLAIN)
_ABOUT = """\
Times: medians of rounds in turn, in one process for each model, and another for what torch.compile makes; shown is
plain PyTorch's time / the way's. What a way gives is held against plain PyTorch first, in training the gradients too.
glibc's malloc keeps all memory in these runs, alike for all ways; the tables with its default settings are further
down. onnxruntime and OpenVINO run alone, in blocks that take turns with plain PyTorch's, with their threads as they
are by default. Bold: slower than plain PyTorch by more than 2%."""


def report(data: Mapping[str, Any]) -> str:
    """`data` is what models.json holds."""
    models = {name: one for name, one in data["models"].items() if "sites" in one}
    parts = ["# Whole models", ", ".join(f"{name} {value}" for name, value in data["machine"].items()) + ".", _ABOUT]
    parts.append("\n".join(_verdicts(models)))
    for kind, title in ((INFERENCE, "Inference"), (TRAINING, "A training step")):
        parts += [f"## {title}", _times(models, "times", kind, tuple(RUNTIMES) if kind == INFERENCE else ())]
    parts += ["## Memory", _ABOUT_MEMORY, _memory(models)]
    parts += ["## With malloc's default settings"]
    parts += [f"{kind}:\n\n{_times(models, 'default malloc', kind, ())}" for kind in KINDS]
    parts += ["## Sites that are not fused", "\n".join(_not_fused(models)) or "None."]
    parts += ["## What was not measured", "\n".join(_untimed(data["models"])) or "Nothing."]
    return "\n\n".join(parts) + "\n"


_ABOUT_MEMORY = """\
Kept by autograd between forward and backward, apart from parameters, buffers and inputs; and the peak of a step: the
most resident memory (VmHWM of /proc/self/status) above what the process held before the step, each way in a process of
its own whose malloc gives back at once what is freed. Shown is plain PyTorch's / the way's."""


def slower(models: Mapping[str, Any]) -> list[tuple[str, str, str, float]]:
    """(model, kind, way, plain / way) where a model is slower for being fused."""
    rows = ((name, kind, way, _ratio(one, "times", kind, way)) for name, one in models.items()
            for kind in KINDS for way in _OURS)  # fmt: skip
    return [(name, kind, way, ratio) for name, kind, way, ratio in rows if ratio is not None and ratio < _SLOWER]


def _verdicts(models: Mapping[str, Any]) -> Iterator[str]:
    timed = sum(
        _ratio(one, "times", kind, way) is not None for one in models.values() for kind in KINDS for way in _OURS
    )
    found = slower(models)
    said = f"**SLOWER for being fused: {len(found)} of {timed}**" if found else f"Slower for being fused: 0 of {timed}"
    yield f"- {said} (model, step, way)."
    rounds = [row["rounds"] for one in models.values() for kind in KINDS
              for row in one.get("times", {}).get(kind, {}).values() if "rounds" in row]  # fmt: skip
    if rounds:
        yield f"- Rounds of a time: {min(rounds)} to {max(rounds)}."
    yield from (f"- **{name}, {kind}, `{way}`: {ratio:.2f}**" for name, kind, way, ratio in found)
    failed = [(name, kind, way) for name, one in models.items() for kind in KINDS
              for way, row in one.get("times", {}).get(kind, {}).items() if "failed" in row]  # fmt: skip
    yield from (f"- **FAILED**: {name}, {kind}, `{way}`" for name, kind, way in failed)


def _ratio(one: Mapping[str, Any], part: str, kind: str, way: str) -> float | None:
    row = one.get(part, {}).get(kind, {}).get(way, {})
    return row["plain"] / row["seconds"] if "seconds" in row else None


def _times(models: Mapping[str, Any], part: str, kind: str, peers: tuple[str, ...]) -> str:
    ways = [way for way in _OTHERS if any(_ratio(one, part, kind, way) is not None for one in models.values())]
    body = []
    for name, one in models.items():
        plain = one.get(part, {}).get(kind, {}).get(PLAIN)
        if plain is None:
            continue
        ratios = [_ratio(one, part, kind, way) for way in ways]
        cells = ["-" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
        bad = [way in _OURS and ratio is not None and ratio < _SLOWER for way, ratio in zip(ways, ratios, strict=True)]
        cells = [f"**{cell}**" if loses else cell for cell, loses in zip(cells, bad, strict=True)]
        of_peers = [one.get("peers", {}).get(peer, {}) for peer in peers]
        cells += [f"{row['plain'] / row['seconds']:.2f}" if "seconds" in row else "-" for row in of_peers]
        body.append([
            f"**{name}**" if any(bad) else name, one["sizes"], _sites(one["sites"][kind]),
            f"{plain['seconds'] * 1e3:.3g}", *cells,
        ])  # fmt: skip
    means = [_mean(_ratio(one, part, kind, way) for one in models.values()) for way in ways]
    body.append(["geometric mean", "", "", "", *means, *[""] * len(peers)])
    return table(["model", "sizes", "sites fused", "plain, ms", *ways, *peers], body)


def _sites(sites: Mapping[str, Any]) -> str:
    """How many are fused of how many; and how many are left as they are because they would be no faster."""
    left = sum(reason.startswith(_NOT_FASTER) for _, _, reason in sites["not fused"])
    return f"{sites['fused']} of {sites['all']}" + (f", {left} not faster" if left else "")


def _mean(ratios: Iterable[float | None]) -> str:
    found = [ratio for ratio in ratios if ratio is not None]
    return f"{statistics.geometric_mean(found):.2f}" if found else "-"


def _memory(models: Mapping[str, Any]) -> str:
    body: list[tuple[list[str], dict[str, float]]] = []
    for name, one in models.items():
        rows = {"kept by autograd": {way: row["kept"] for way, row in one.get("times", {}).get(TRAINING, {}).items()
                                     if "kept" in row}}  # fmt: skip
        rows |= {f"peak, {kind}": one.get("peak", {}).get(kind, {}) for kind in KINDS}
        for title, sizes in rows.items():
            if PLAIN in sizes:
                ratios = {way: sizes[PLAIN] / sizes[way] for way in _OTHERS if sizes.get(way)}
                body.append(([name, title, f"{sizes[PLAIN] / 1e6:.3g} MB"], ratios))
    ways = [way for way in _OTHERS if any(way in ratios for _, ratios in body)]
    lines = [[*words, *(f"{ratios[way]:.2f}" if way in ratios else "-" for way in ways)] for words, ratios in body]
    return table(["model", "what", "plain", *ways], lines)


def _not_fused(models: Mapping[str, Any]) -> Iterator[str]:
    for name, one in models.items():
        for kind in KINDS:
            for path, order, reason in one["sites"][kind]["not fused"]:
                yield f"- {name}, {kind}, `{path}` ({order}): {reason}"


def _untimed(models: Mapping[str, Any]) -> Iterator[str]:
    """Each reason once, with all that it is said of."""
    said: dict[tuple[str, str], list[str]] = {}
    there = sum("not installed" not in one for one in models.values())
    for name, one in models.items():
        if "not installed" in one:
            yield f"- {name}: {one['not installed']}"
            continue
        for kind in KINDS:
            for way, row in one.get("times", {}).get(kind, {}).items():
                for word in ("refused", "failed"):
                    if word in row:
                        said.setdefault((f"`{way}`, {kind}", f"{word}: {row[word]}"), []).append(name)
            for way in WAYS.keys() - one.get("times", {}).get(kind, {}).keys():
                if not (WAYS[way].inference_only and kind == TRAINING):
                    said.setdefault((f"`{way}`, {kind}", "not run"), []).append(name)
        for peer in RUNTIMES.keys() - one.get("peers", {}).keys():
            said.setdefault((peer, "not run"), []).append(name)
        for peer, row in one.get("peers", {}).items():
            for word in ("refused", "failed"):
                if word in row:
                    said.setdefault((peer, f"{word}: {row[word]}"), []).append(name)
    for (what, reason), names in sorted(said.items()):
        yield f"- {what}: {reason} ({'all models' if len(names) == there else '; '.join(names)})"
