"""`python -m bench.one_layer BACKEND ROW`: a few training steps of one layer, for profilers and sanitizers.

`--tiny` takes a few positions, and all rows that are named, `--keep` what conv_film keeps.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from examples.arguments import positive
from film_kernels.backends import BACKENDS
from film_kernels.problems.conv_film import KEEPS

from .shapes import ROWS
from .timing import synchronize
from .work import make, training_step


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 1 where the backend serves none of the rows."""
    parser = argparse.ArgumentParser(prog="python -m bench.one_layer", description=__doc__)
    parser.add_argument("backend", choices=BACKENDS)
    parser.add_argument("rows", nargs="+", choices=ROWS, metavar="ROW")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=positive, default=2.0)
    parser.add_argument("--keep", choices=KEEPS, default=KEEPS[0])
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(argv)
    device, served = torch.device(options.device), 0
    for name in options.rows:
        row = replace(ROWS[name], tiny=options.tiny)
        chosen = {"keep": options.keep} if row.case.operator == "conv_film" else {}
        problem = row.problem(device)._replace(**chosen)  # type: ignore[arg-type]
        reason = BACKENDS[options.backend].unavailable() or BACKENDS[options.backend].why_not(problem)
        if reason is not None:
            print(f"{name}: {reason}")
            continue
        work = make(row, device)
        given = {**work.parameters, **row.case.options, **chosen, "backend": options.backend}
        step = training_step(partial(row.case.fused, **given), work)
        for _ in range(int(options.steps)):
            step()
        synchronize(device)
        served += 1
        print(f"{name}: done", flush=True)
    return int(served == 0)


if __name__ == "__main__":
    sys.exit(main())
