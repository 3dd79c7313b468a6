"""`python -m bench.drawn`: layers drawn by lot, which nothing was tuned for, against plain PyTorch on the CPU.

The layers are those of a seed (bench/lots.py): as many of each operator as asked for. Writes drawn.md into the
operator's folder of results; it ends with the layers where the automatic choice of a backend lost, and what would have
been faster.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from examples.arguments import at_least
from film_kernels.backends import BACKENDS, choose

from . import machine
from .losses import Comparison, losses
from .lots import draw
from .outcomes import Failed, Timed
from .peers import AUTOMATIC, PLAIN
from .runner import Budget, Runner
from .shapes import OPERATORS, Row
from .tables import table
from .timing import Rounds

FILE = "drawn.md"
_CPU = torch.device("cpu")
_KINDS = ("forward", "training")
_ROUNDS = Rounds(least=11, most=200)


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


def report(operator: str, found: Mapping[str, Mapping[str, Comparison]], seed: int) -> str:
    """In Markdown."""
    about = ", ".join(f"{name} {value}" for name, value in machine.describe(_CPU).items())
    parts = [
        f"# {len(found)} layers of {operator} drawn by lot (seed {seed}), plain PyTorch's time / ours",
        f"{about}.",
    ]
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
    parser.add_argument("--only", choices=OPERATORS, help="the layers of one operator (default: of each)")
    parser.add_argument("--layers", type=at_least(1), default=24, help="of each operator (default: %(default)s)")
    parser.add_argument("--seconds", type=at_least(0), default=150, help="for each operator (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="a folder (default: bench/results/<device>)")
    options = parser.parse_args(argv)
    out = options.out or Path("bench/results") / machine.folder_name(_CPU)
    operators = [options.only] if options.only else OPERATORS
    try:
        for operator in operators:
            (out / operator).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --out: {error}")
    for operator in operators:
        rows = draw(operator, options.seed, options.layers)
        text = report(operator, measure(rows, options.seconds), options.seed)
        (out / operator / FILE).write_text(text)
        print(text)


if __name__ == "__main__":
    main()
