"""`python -m bench.models`: whole models as their packages have them, plain and in every other way, on the CPU.

Random weights, sizes of a small but real use. Measured are inference and a training step (forward and backward), what
autograd keeps between the two, and the most memory that a step takes; onnxruntime and OpenVINO are measured in
inference. Each part of each model runs in a process of its own (`bench.model_child`). The packages are those of
bench/requirements-models.txt; a model whose package is not there is reported so.

Writes models.md, models.json and models.png into the folder of results. What is measured again replaces what stands in
models.json, and all else stays: `--models`, `--ways` and `--parts` choose.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from examples.arguments import at_least

from . import machine
from .exported import RUNTIMES
from .model_chart import draw
from .model_report import report
from .model_ways import EAGER, PLAIN, WAYS
from .model_zoo import MODELS

REPORT, DATA, CHART = "models.md", "models.json", "models.png"
PARTS = ("about", "times", "default malloc", "peak", "peers")
# By default glibc gives large blocks back to the system when they are freed, and whether it does depends on the sizes
# that a program happens to use: each block that comes anew is cleared first, a tenth of a model's time. Times are taken
# with all memory kept, alike for all ways, and once more as it is by default. Peaks are taken with nothing kept.
_KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(64 << 20)}
_RETURNED = {"MALLOC_MMAP_THRESHOLD_": str(64 << 10), "MALLOC_TRIM_THRESHOLD_": str(64 << 10)}
_MALLOC = {"times": _KEPT, "peers": _KEPT, "peak": _RETURNED}
Found = dict[str, Any]  # of a model, by part


class Child(Exception):
    """A part's process failed; the message is the end of what it said."""


def run(part: str, model: str, names: Sequence[str], seconds: float, small: bool) -> Found:
    """What `python -m bench.model_child` prints, in a process of its own."""
    own = "times" if part == "default malloc" else part
    command = [sys.executable, "-m", "bench.model_child", own, model, *names, "--seconds", str(seconds)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        command + ["--small"] * small, env=environment | _MALLOC.get(part, {}), capture_output=True, text=True
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise Child(lines[-1][:300])
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, found: Found, parts: Sequence[str], ways: Sequence[str], seconds: float, small: bool) -> None:
    """Put into `found` what the parts say of the model of that name."""
    about = run("about", name, (), seconds, small)
    if "not installed" in about:
        found["not installed"] = about["not installed"]
        return
    found.pop("not installed", None)
    found.update(about)
    for part in parts:
        if part in ("times", "default malloc"):
            eager = [way for way in ways if way in EAGER]
            compiled = [way for way in ways if way not in EAGER and part == "times"]
            # Apart: of a module's code Dynamo looks through all that it has captured, whichever copy of it is called.
            # Plain PyTorch is in each of them.
            for names in [some for some in (eager, compiled) if {*some} - {PLAIN}] or [[PLAIN]]:
                for kind, rows in run(part, name, names, seconds, small).items():
                    found.setdefault(part, {}).setdefault(kind, {}).update(_medians(rows))
        elif part == "peak":
            for way in ways:
                for kind, size in run(part, name, [way], seconds, small).items():
                    found.setdefault(part, {}).setdefault(kind, {})[way] = size
        elif part == "peers":
            for peer, row in run(part, name, tuple(RUNTIMES), seconds, small).items():
                found.setdefault(part, {})[peer] = _of_plain(peer, row)


def _medians(rows: Mapping[str, Any]) -> dict[str, Any]:
    """Of a process: each way beside plain PyTorch as it was in the same rounds."""
    plain = rows[PLAIN]
    found = {}
    for way, row in rows.items():
        found[way] = {key: value for key, value in row.items() if key != "seconds"}
        if "seconds" in row:
            found[way] |= {
                "seconds": statistics.median(row["seconds"]), "plain": statistics.median(plain["seconds"]),
                "rounds": len(row["seconds"]),
            }  # fmt: skip
        if "kept" in row:
            found[way]["plain kept"] = plain["kept"]
    return found


def _of_plain(peer: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
    if "seconds" not in row:
        return row
    seconds = row["seconds"]
    return {"seconds": statistics.median(seconds[peer]), "plain": statistics.median(seconds[PLAIN])}


def chosen(names: Sequence[str], known: Sequence[str], option: str) -> list[str]:
    """Those of `known` that contain one of `names`; all where there are none. Raises ValueError."""
    for name in names:
        if not any(name in one for one in known):
            raise ValueError(f"argument {option}: {name!r} is in none of {', '.join(known)}")
    return [one for one in known if not names or any(name in one for name in names)]


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.models", description="Times whole models.")
    parser.add_argument("--models", nargs="+", default=[], help="parts of their names (default: all)")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS), help="default: all")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="default: all")
    parser.add_argument("--seconds", type=at_least(0), default=20, help="of timing, a part (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="sizes that take no time")
    parser.add_argument("--out", type=Path, help="a folder (default: bench/results/<device>)")
    options = parser.parse_args(argv)
    cpu = torch.device("cpu")
    out = options.out or Path("bench/results") / machine.folder_name(cpu)
    try:
        names = chosen(options.models, list(MODELS), "--models")
        out.mkdir(parents=True, exist_ok=True)
        data = json.loads((out / DATA).read_text()) if (out / DATA).exists() else {"models": {}}
    except (OSError, ValueError) as error:
        parser.error(str(error))
    data["machine"] = machine.describe(cpu)
    failed = {}
    for name in names:
        print(name, flush=True)
        try:
            measure(
                name, data["models"].setdefault(name, {}), options.parts, options.ways, options.seconds, options.small
            )
        except Child as error:
            failed[name] = str(error)
        (out / DATA).write_text(json.dumps(data, indent=1) + "\n")
    data["models"] = {name: data["models"][name] for name in MODELS if name in data["models"]}
    text = report(data)
    (out / REPORT).write_text(text)
    draw(data, out / CHART)
    print(text)
    if failed:
        sys.exit("\n".join(f"{name}: {reason}" for name, reason in failed.items()))


if __name__ == "__main__":
    main()
