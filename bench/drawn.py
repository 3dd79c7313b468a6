"""`python -m bench.drawn`: layers drawn by lot, which nothing was tuned for, against plain PyTorch on the CPU.

The layers are those of a seed: as many as asked for, of 1 to 12 samples, 3 to 224 input channels and square kernels of
1 to 7 taps at a stride of 1 or 2, in either memory format. Writes drawn.md into the folder of results; it ends with the
layers where the automatic choice of a backend lost, and what would have been faster.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from examples.arguments import at_least
from film_kernels.backends import BACKENDS, choose

from . import machine
from .losses import Comparison, losses
from .outcomes import Failed, Timed
from .peers import AUTOMATIC, PLAIN
from .report import table
from .runner import Budget, Runner
from .shapes import Case, Row
from .timing import Rounds

FILE = "drawn.md"
_CPU = torch.device("cpu")
_KINDS = ("forward", "training")
_MOST_PRODUCTS = 1.5e9  # of a layer's forward; larger maps are made smaller
_ROUNDS = Rounds(least=11, most=200)


def draw(seed: int, count: int) -> list[Row]:
    """`count` rows, the same for the same seed."""
    lot = random.Random(seed)
    return [_draw_one(lot) for _ in range(count)]


def _draw_one(lot: random.Random) -> Row:
    kernel, stride = lot.choice((1, 3, 3, 3, 5, 7)), lot.choice((1, 1, 1, 2))
    if kernel == 1:  # in channels_last PyTorch 2.13's own backward of these writes past its memory at a stride of 2
        stride = 1
    inputs, outputs = lot.choice((3, 12, 20, 48, 80, 112, 160, 224)), lot.choice((24, 40, 56, 96, 144, 208))
    samples, height, width = lot.choice((1, 2, 5, 12)), lot.randint(9, 70), lot.randint(9, 70)
    channels_last = lot.random() < 0.5
    while samples * height * width * inputs * outputs * (kernel / stride) ** 2 > _MOST_PRODUCTS:
        samples, height, width = max(samples // 2, 1), max(height * 2 // 3, 7), max(width * 2 // 3, 7)
    shape, weight = (samples, inputs, height, width), (outputs, inputs, kernel, kernel)
    name = f"{'x'.join(map(str, shape))} -> {outputs}, {kernel}x{kernel}" + (", stride 2" if stride == 2 else "")
    return Row(Case(name, shape, weight, small=shape, padding=kernel // 2, stride=stride), channels_last)


def measure(rows: Sequence[Row], seconds: float, rounds: Rounds = _ROUNDS) -> dict[str, dict[str, Comparison]]:
    """For each row and kind, the times of plain PyTorch, of the automatic choice and of the other backends that serve
    it. Rows that come too late are left out.

    Raises RuntimeError where anything fails or is wrong."""
    runner = Runner(_CPU, Budget(seconds, len(rows) * len(_KINDS)), rounds)
    found: dict[str, dict[str, Comparison]] = {}
    for row in rows:
        compared = {kind: one for kind in _KINDS if (one := _compare(runner, row, kind)) is not None}
        if len(compared) < len(_KINDS):
            break
        found[row.name] = compared
    return found


def _compare(runner: Runner, row: Row, kind: str) -> Comparison | None:
    chosen = choose(row.problem(_CPU), None).name
    # The choice is not timed twice, and `reference` is plain PyTorch.
    others = [name for name in BACKENDS if name not in (chosen, "reference")]
    outcomes = runner.measure(row, kind, (PLAIN.name, AUTOMATIC.name, *others))
    for name, outcome in outcomes.items():
        if isinstance(outcome, Failed):
            raise RuntimeError(f"{row.name}, {kind}, {name}: {outcome.reason}")
    medians = {name: statistics.median(one.times) for name, one in outcomes.items() if isinstance(one, Timed)}
    return Comparison(medians, chosen) if {PLAIN.name, AUTOMATIC.name} <= set(medians) else None


def summary(ratios: Sequence[float]) -> str:
    """Geometric mean, median and least."""
    mean = statistics.geometric_mean(ratios)
    return f"geometric mean {mean:.2f}, median {statistics.median(ratios):.2f}, least {min(ratios):.2f}"


def report(found: Mapping[str, Mapping[str, Comparison]], seed: int) -> str:
    """In Markdown."""
    about = ", ".join(f"{name} {value}" for name, value in machine.describe(_CPU).items())
    parts = [f"# {len(found)} layers drawn by lot (seed {seed}), plain PyTorch's time / ours", f"{about}."]
    if found:
        parts += ["\n".join(f"- {kind}: {summary([of[kind].ratio for of in found.values()])}" for kind in _KINDS)]
    body = [[name, *(f"{compared[kind].ratio:.2f}" for kind in _KINDS)] for name, compared in found.items()]
    parts += [table(["layer", *_KINDS], body)]
    if found:
        parts += [losses((name, kind, of[kind]) for name, of in found.items() for kind in _KINDS)]
    return "\n\n".join(parts) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.drawn", description="Times layers drawn by lot.")
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument("--layers", type=at_least(1), default=24)
    parser.add_argument("--seconds", type=at_least(0), default=150, help="for everything (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="a folder (default: bench/results/<device>)")
    options = parser.parse_args(argv)
    out = options.out or Path("bench/results") / machine.folder_name(_CPU)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --out: {error}")
    text = report(measure(draw(options.seed, options.layers), options.seconds), options.seed)
    (out / FILE).write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
