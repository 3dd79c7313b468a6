"""`python -m film_kernels`: versions, what was built, and each backend with the reason where it is not available.

`python -m film_kernels explain some_module:make_model`: the FiLM sites of a model, and for each whether it is fused or
why not.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import platform
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import __version__, _library, available_backends, find_film


def show_backends() -> None:
    """Print what is here."""
    print(f"film_kernels {__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    reason = available_backends()["cpu"]
    built = f"built; uses {torch.ops.film_kernels_cpu.instruction_sets()}" if reason is None else reason
    print(f"compiled for the CPU ({platform.machine()}): {built}")
    print(f"compiled for CUDA: {'built' if _library.find('_cuda') else 'not built: setup.py says why'}\n")
    print_table([("backend", "available"), *((name, why or "yes") for name, why in available_backends().items())])


def explain(factory: str, convolutions: bool = False) -> None:
    """Print the FiLM sites of the model that `factory`, "module:function", makes: the function takes no arguments and
    returns a model, or a pair: a model and its example inputs, as `find_film` takes them. With `convolutions`, those
    without FiLM too.

    Raises:
        ValueError: `factory` names nothing that makes a model, or the model needs example inputs.
    """
    model, example_inputs = _made_by(factory)
    pair = f"{factory} may return a pair, (model, example_inputs)"
    try:
        sites = find_film(model, example_inputs, norms=True, convolutions=convolutions)  # all that `fuse` takes
    except ValueError as error:
        if example_inputs is not None:
            raise
        raise ValueError(f"{error}; {pair}") from error
    print(_mode(model))
    if not sites:
        print("no convolution's or norm's output meets FiLM")
        return
    reasons = list(dict.fromkeys(site.reason for site in sites if site.reason is not None))
    rows = [("path", "operations", "fused", "where")]
    for site in sites:
        where = site.source
        if where.startswith(str(Path.cwd())):
            where = str(Path(where).relative_to(Path.cwd()))
        fused = "yes" if site.reason is None else f"no ({reasons.index(site.reason) + 1})"
        rows.append((site.path, " ".join(site.order), fused, where))
    print_table(rows)
    if reasons:
        print()
        print_table([(f"({i})", reason) for i, reason in enumerate(reasons, 1)])
    call = f"film_kernels.fuse(model{', convolutions=True' if convolutions else ''})"
    print(f"\n{sum(site.fusable for site in sites)} of {len(sites)} sites are fused by {call}")
    if example_inputs is None:
        print_table([(f"without example inputs, shapes are not known: {pair}",)])


def _mode(model: nn.Module) -> str:
    """In which mode the sites were looked for."""
    modes = {module.training for module in model.modules()}
    if len(modes) == 2:
        return f"{type(model).__name__}, some of its modules in training mode and some in eval mode"
    return f"{type(model).__name__} in {'training' if modes == {True} else 'eval'} mode"


def _made_by(factory: str) -> tuple[nn.Module, Any]:
    module, _, name = factory.partition(":")
    if not module or not name:
        raise ValueError(f"factory must be module:function, got {factory!r}")
    try:
        make = getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(f"factory {factory!r}: {error}") from error
    made = make()
    model, example_inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise ValueError(f"factory {factory!r} must return a torch.nn.Module, or one and its example inputs")
    return model, example_inputs


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as what stands in them; where the terminal is narrower (100 characters, where that is not known),
    what stands in the widest ones is broken into lines."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    room = max(shutil.get_terminal_size((100, 24)).columns - 2 * (len(widths) - 1), 10 * len(widths))
    while sum(widths) > room:
        widths[widths.index(max(widths))] -= 1
    for row in rows:
        cells = [
            textwrap.wrap(cell, width, break_on_hyphens=False) or [""] for cell, width in zip(row, widths, strict=True)
        ]
        for line in itertools.zip_longest(*cells, fillvalue=""):
            print("  ".join(f"{part:<{width}}" for part, width in zip(line, widths, strict=True)).rstrip())


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; `arguments` in place of the process's own."""
    parser = argparse.ArgumentParser(prog="python -m film_kernels", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command")
    command = commands.add_parser("explain", help="list the FiLM sites of a model")
    command.add_argument("factory", help="module:function that returns a model, or a pair (model, example_inputs)")
    command.add_argument("--convolutions", action="store_true", help="those without FiLM too, as fuse can take them")
    chosen = parser.parse_args(arguments)
    if chosen.command is None:
        show_backends()
        return
    sys.path.insert(0, "")
    try:
        explain(chosen.factory, chosen.convolutions)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
