"""`python -m bench cpu`, `gpu` or `check-gpu`: what `make bench`, `make bench-gpu` and `make check-gpu` run.

`cpu` and `gpu` run the benchmarks: forward, training, memory. Those of each operator are apart, with a folder and a
report of their own; `--only norm_film` runs and writes one operator's alone. `check-gpu` is the one command for a
machine with a GPU, without a network (gpu_check.py): libraries, smoke, tests, a few times, profiles, sanitizers.

Environment variables:
    OUT       the folder for everything that is written (default: bench/results/<device>)
    BUDGET_S  seconds for everything; rows that come too late are left out (default: 540 for each operator; gpu: 1800
              for each; check-gpu: 480)
    DRY       1: the same parts in small, on the CPU (default folder: build/dry-run)
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from examples.arguments import positive

from . import first_times, gpu_check, machine, report
from .parts import Done, Part, run
from .shapes import OPERATORS

_BUDGET_OF_AN_OPERATOR = {"cpu": 540.0, "gpu": 1800.0}
_BUDGET_OF_A_CHECK = 480.0
_COMMANDS = (*_BUDGET_OF_AN_OPERATOR, "check-gpu")
_SHARES = (("forward", 0.35), ("training", 0.5), ("memory", 0.15))  # of an operator's time
_START = 12.0  # seconds of a benchmark part before its first row and after its last; less on the CPU
_FOR_REPORT = 6.0


def benchmark_parts(device: str, dry: bool, out: Path, operators: Sequence[str]) -> list[Part]:
    """Forward, training and memory of each operator, each with a JSON file in its folder in `out`."""

    def part(operator: str, name: str, share: float) -> Part:
        def command(seconds: float) -> list[str]:
            # Where pytest-benchmark is missing, a stand-in writes the part of its JSON that the report reads.
            plugin = [] if importlib.util.find_spec("pytest_benchmark") else ["-p", "bench.stand_in"]
            rest = max(seconds - (_START / 2 if device == "cpu" else _START), 1)
            results = out / operator / f"{name}.json"
            words = [f"--operator={operator}", f"--device={device}", f"--seconds={rest:.0f}"]
            if dry:
                words.append("--tiny")
            return [
                sys.executable, "-m", "pytest", "-q", "--tb=short", "--capture=sys", "-p", "no:cacheprovider", *plugin,
                f"bench/test_{name}.py", "--benchmark-quiet", f"--benchmark-json={results}", *words,
            ]  # fmt: skip

        return Part(f"{operator} {name}", command, share)

    # A part's share is of the time that those before it have left.
    wanted = [(operator, name, share) for operator in operators for name, share in _SHARES]
    rest = [sum(share for *_, share in wanted[at:]) for at in range(len(wanted))]
    return [part(operator, name, share / left) for (operator, name, share), left in zip(wanted, rest, strict=True)]


def finish(out: Path, operators: Sequence[str], done: Sequence[Done]) -> str:
    """Write the reports and the summary into `out`; returns the summary."""
    lines = [f"{one.name}: {one.line}" for one in done]
    for operator in operators:
        try:
            lines += [f"{operator}: {line}" for line in report.make(out / operator)]
        except (OSError, ValueError) as error:
            lines.append(f"{operator}: no report: {error}")
    return _written(out, lines)


def _written(out: Path, lines: Sequence[str]) -> str:
    summary = "\n".join([*lines, f"everything is in {out}"])
    (out / gpu_check.SUMMARY).write_text(summary + "\n")
    return summary


def finish_check(out: Path, done: Sequence[Done]) -> str:
    """The same for `check-gpu`: how its parts ended, and the table of its times."""
    gpu_check.tail(out / gpu_check.LOG)
    lines = [f"{one.name}: {one.line}" for one in done]
    try:
        found = json.loads((out / gpu_check.TIMES).read_text())
        lines += [f"{dtype}: {one['flops'] / 1e12:.0f} TFLOP/s, copy {one['bandwidth'] / 1e12:.2f} TB/s"
                  for dtype, one in found["peaks"].items()]  # fmt: skip
        lines.append(first_times.summary(found["rows"]))
    except (OSError, ValueError) as error:
        lines.append(f"no times: {error}")
    return _written(out, lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0, 1 where a part failed, or 2 without a GPU where one is needed and where BUDGET_S or
    OUT cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Runs the performance suite.")
    parser.add_argument("command", choices=_COMMANDS)
    parser.add_argument("--only", choices=OPERATORS, help="the benchmarks of one operator (default: of all)")
    options = parser.parse_args(argv)
    command, operators = options.command, [options.only] if options.only else OPERATORS
    dry = os.environ.get("DRY", "0") not in ("", "0")
    if command != "cpu" and not dry and not torch.cuda.is_available():
        print("PyTorch sees no GPU here (DRY=1 tries the same parts in small on the CPU)", file=sys.stderr)
        return 2
    device = "cpu" if dry or command == "cpu" else "cuda"
    checks = command == "check-gpu"
    try:
        usual = _BUDGET_OF_A_CHECK if checks else _BUDGET_OF_AN_OPERATOR[command] * len(operators)
        budget = positive(os.environ.get("BUDGET_S") or str(usual))
    except argparse.ArgumentTypeError as error:
        print(f"BUDGET_S {error}", file=sys.stderr)
        return 2
    default = Path("build/dry-run") if dry else Path("bench/results") / machine.folder_name(torch.device(device))
    out = Path(os.environ.get("OUT") or default)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for operator in () if checks else operators:
            (out / operator).mkdir(parents=True, exist_ok=True)
            # nothing of an earlier run is reported
            for old in (*report.FILES, report.REPORT, report.CHART):
                (out / operator / old).unlink(missing_ok=True)
        for old in (gpu_check.LOG, gpu_check.SUMMARY, gpu_check.SMOKE, gpu_check.TIMES):
            (out / old).unlink(missing_ok=True)
    except OSError as error:
        print(f"OUT cannot be used: {error}", file=sys.stderr)
        return 2
    parts = gpu_check.parts(dry, out) if checks else benchmark_parts(device, dry, out, operators)
    os.environ.update(gpu_check.variables() if checks else {})
    done = run(parts, budget - _FOR_REPORT, out / gpu_check.LOG)
    print(f"\n== summary\n{finish_check(out, done) if checks else finish(out, operators, done)}")
    return int(any(one.failed for one in done))


if __name__ == "__main__":
    sys.exit(main())
