"""`python -m bench.model_child`: one part of the measurements of one model, in a process of its own, as `bench.models`
starts it, with the settings of malloc that belong to the part. Prints a line of JSON.

Times of all ways are taken in turn, in one process. The memory of each way has a process of its own, for what one way
has freed would be there for the next. A peer with threads of its own is timed by itself: they go on looking for work
when its call has ended.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import film_kernels

from . import model_ways as ways
from .exported import RUNTIMES, NotExported, exported, opened
from .memory import kept_bytes
from .model_packages import NotInstalled
from .model_zoo import MODELS, Inputs, Model, sizes, tensors
from .timing import Rounds, alone, interleaved

SMALLEST = Rounds(least=1, most=1)
_ROUNDS = Rounds(least=7, most=80)
_CPU = torch.device("cpu")
_WARM_UP = 3  # calls: sites are captured in the first, shapes that vary in the second


def about(model: Model, small: bool) -> dict[str, Any]:
    """Sizes, and the sites: how many there are, how many are fused, and why the others are not."""
    found: dict[str, Any] = {"sites": {}}
    for kind in ways.KINDS:
        module, inputs = model.made(small)
        sites = film_kernels.find_film(module.train(kind == ways.TRAINING), inputs, norms=True)
        found["sizes"] = sizes(inputs)
        found["sites"][kind] = {
            "all": len(sites),
            "fused": sum(site.fusable for site in sites),
            "not fused": [[site.path, " ".join(site.order), site.reason] for site in sites if not site.fusable],
        }
    return found


def times(model: Model, names: Sequence[str], seconds: float, small: bool) -> dict[str, Any]:
    """By kind of step and way: the seconds of each round, or why there are none; and what autograd keeps, in bytes.

    A way whose result is not plain PyTorch's is not timed, and said to have failed."""
    found: dict[str, Any] = {}
    rounds = SMALLEST if small else _ROUNDS
    ways.randomly_as_eager()
    for kind in ways.KINDS:
        module, inputs = model.made(small)
        there = ways.modules(model, module, tuple(dict.fromkeys((ways.PLAIN, *names))), kind)
        steps: dict[str, Callable[[], object]] = {}
        expected: dict[str, torch.Tensor] = {}
        of_kind = found[kind] = {}
        for name, one in there.items():
            if isinstance(one, str):
                of_kind[name] = {"refused": one}
                continue
            step = ways.step(model, one, inputs, kind)
            try:
                for _ in range(_WARM_UP):
                    step()
                results = ways.results(one, step, kind)
                wrong = ways.complaint(results, expected or results)
                kept = kept_bytes(ways.forward(model, one, inputs), ways.known(one, inputs))
            except Exception as error:
                if name == ways.PLAIN:
                    raise
                of_kind[name] = {"failed": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"}
                continue
            expected = expected or results
            if wrong is not None:
                of_kind[name] = {"failed": wrong}
                continue
            steps[name], of_kind[name] = step, {"kept": kept} if kind == ways.TRAINING else {}
        for name, taken in interleaved(steps, _CPU, seconds / len(ways.KINDS), rounds).items():
            of_kind[name]["seconds"] = taken
    return found


def peak(model: Model, name: str, small: bool) -> dict[str, Any]:
    """By kind of step: the most memory that a step takes at once, in bytes, above what the process held before it."""
    found: dict[str, Any] = {}
    ways.randomly_as_eager()
    for kind in ways.KINDS:
        module, inputs = model.made(small)
        one = ways.modules(model, module, (name,), kind)[name]
        del module
        if isinstance(one, str):
            continue
        step = ways.step(model, one, inputs, kind)
        for _ in range(_WARM_UP):
            step()
        one.zero_grad()
        found[kind] = statistics.median(_peak_of(step) for _ in range(1 if small else 3))
    return found


def _peak_of(step: Callable[[], object]) -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS
    before = _status("VmHWM")
    step()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


class _Whole(nn.Module):
    """A model of positional tensors that returns one."""

    def __init__(self, model: Model, module: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.model, self.module = model, module
        self.names = tuple(inputs) if isinstance(inputs, Mapping) else None

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        return self.model.call(self.module, dict(zip(self.names, values, strict=True)) if self.names else values)


def peers(model: Model, names: Sequence[str], seconds: float, small: bool) -> dict[str, Any]:
    """By peer: seconds of plain PyTorch and of the peer, each by itself, in blocks that take turns; or why there are
    none."""
    module, inputs = model.made(small)
    values, plain = tensors(inputs), ways.step(model, module, inputs, ways.INFERENCE)
    expected = {"result": plain().clone()}
    found: dict[str, Any] = {}
    try:
        with exported(_Whole(model, module, inputs), tuple(values)) as file:
            for name in names:
                found[name] = _peer(name, file, values, plain, expected, seconds, small)
    except NotExported as reason:
        return {name: {"refused": str(reason)} for name in names}
    return found


def _peer(
    name: str, file: Path, values: list[torch.Tensor], plain: ways.Step, expected: dict[str, torch.Tensor],
    seconds: float, small: bool,
) -> dict[str, Any]:  # fmt: skip
    taken: dict[str, list[float]] = {ways.PLAIN: [], name: []}
    blocks, rounds = (1, SMALLEST) if small else (3, _ROUNDS)
    for _ in range(blocks):
        taken[ways.PLAIN] += alone(plain, _CPU, seconds / 2 / blocks, rounds)
        try:
            call = opened(name, file)
            wrong = ways.complaint({"result": call(values)}, expected)
        except Exception as reason:
            return {"refused": str(reason)}
        if wrong is not None:
            return {"failed": wrong}
        taken[name] += alone(partial(call, values), _CPU, seconds / 2 / blocks, rounds)
        del call  # with its threads
    return {"seconds": taken}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.model_child")
    parser.add_argument("part", choices=("about", "times", "peak", "peers"))
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("names", nargs="*", help=f"ways or, of the part peers, some of {', '.join(RUNTIMES)}")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    model, names, seconds, small = MODELS[options.model], options.names, options.seconds, options.small
    try:
        found = {
            "about": lambda: about(model, small),
            "times": lambda: times(model, names, seconds, small),
            "peak": lambda: peak(model, names[0], small),
            "peers": lambda: peers(model, names, seconds, small),
        }[options.part]()
    except NotInstalled as error:
        found = {"not installed": str(error)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
