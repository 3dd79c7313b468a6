"""`python -m bench.smoke`: whether a GPU's kernels are right, backend by backend, before anything is timed.

Output and gradients of small layers (smoke_rows.py) are held against float64 on the device: an error, as the norm of
the difference over the norm of the result, is at most twice plain PyTorch's in the same dtype, or a rounding of that
dtype. Memory that a kernel does not write holds NaN, and a second run gives the same bits. What matters most comes
first, for time may be short.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from examples.arguments import positive
from film_kernels.backends import BACKENDS

from .shapes import Row
from .smoke_rows import rows
from .work import Work, make, training_step, without_search

_ROUNDING = {torch.float32: 3e-4, torch.bfloat16: 8e-3, torch.float16: 1e-3}  # of products in tf32, and of results


def smoke(name: str, device: torch.device, seconds: float, tiny: bool) -> Iterator[dict[str, Any]]:
    """Try the backend `name` for so long: a dictionary for each row, with "wrong" where something is."""
    backend, end = BACKENDS[name], time.monotonic() + seconds
    reason = backend.unavailable()
    if reason is not None:
        yield {"backend": name, "wrong": f"it is not available: {reason}"}
        return
    for row in (replace(row, tiny=tiny) for row in rows()):
        if time.monotonic() > end:
            break
        about = {"backend": name, "operator": row.case.operator, "case": row.case.name, "dtype": str(row.dtype)[6:],
                 "channels_last": row.channels_last, "activation": row.case.activation,
                 "keep": getattr(row.case, "keep", None)}  # fmt: skip
        refusal = backend.why_not(row.problem(device))
        if refusal is not None:
            yield {**about, "refused": refusal}
            continue
        try:
            about |= _held_against_float64(row, device, name)
        except Exception as error:
            about["wrong"] = f"{type(error).__name__}: {str(error).strip()[:300]}"
        yield about
        if "CUDA error" in str(about.get("wrong")):  # after one the process can do nothing more on the device
            break


def _held_against_float64(row: Row, device: torch.device, backend: str) -> dict[str, Any]:
    work = make(row, device)
    case = row.case
    exact = _step(partial(case.plain, **(wide := work.cast(torch.float64)).parameters), wide)
    plain = _step(partial(case.plain, **work.parameters), work)
    call = partial(case.fused, **work.parameters, **case.options, backend=backend)
    _poison(device)
    first = _step(call, work)
    _poison(device)
    second = _step(call, work)
    names = ["y", *(f"d{name}" for name in work.leaves)]
    wrong, errors = [], {}
    for name, e, p, one, again in zip(names, exact, plain, first, second, strict=True):
        size = float(e.norm()) or 1.0
        error, theirs = (float((t.double() - e).norm()) / size for t in (one, p))
        errors[name] = [error, theirs]
        if not error <= max(2 * theirs, _ROUNDING[work.input.dtype]):
            wrong.append(f"{name} {error:.2g} off, plain {theirs:.2g}")
        if not torch.equal(one, again):
            wrong.append(f"{name} is another in a second run")
    return {"errors": errors, **({"wrong": ", ".join(wrong)} if wrong else {})}


def _step(call: Any, work: Work) -> Sequence[Tensor]:
    """With the library's convolutions deterministic, as its user can have them."""
    settings = torch.backends.cudnn
    before, settings.deterministic = settings.deterministic, True
    try:
        with without_search():
            return [t.detach() for t in training_step(call, work)()]
    finally:
        settings.deterministic = before


def _poison(device: torch.device) -> None:
    """Memory that the allocator hands out next holds NaN."""
    if device.type == "cuda":
        nan = [torch.full((1 << size,), float("nan"), device=device) for size in (28, *[17] * 256)]
        torch.cuda.synchronize()
        del nan


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.smoke", description="Is a GPU's every kernel right?")
    parser.add_argument("backends", nargs="+", choices=list(BACKENDS), help="tried at the same time")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=positive, default=75.0, help="for each (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="a few positions only")
    parser.add_argument("--out", type=Path, help="a file for all that was found, a line of JSON for each row")
    options = parser.parse_args(argv)
    if len(options.backends) > 1:
        return _side_by_side(options)
    (name,) = options.backends
    counts = dict.fromkeys(("right", "wrong", "refused"), 0)
    with open(options.out or os.devnull, "w") as out:  # noqa: PTH123  # written as it is found: time may be short
        for one in smoke(name, torch.device(options.device), options.seconds, options.tiny):
            word = next((word for word in ("wrong", "refused") if word in one), "right")
            counts[word] += 1
            print(json.dumps(one), file=out, flush=True)
            if word == "wrong":
                print(json.dumps(one), flush=True)
    print(f"{name}: {counts['right']} right, {counts['wrong']} WRONG, {counts['refused']} refused", flush=True)
    return int(counts["wrong"] > 0 or counts["right"] == 0)


def _side_by_side(options: argparse.Namespace) -> int:
    """A process for each: what brings one down leaves the others."""
    words = [sys.executable, "-m", "bench.smoke", f"--device={options.device}", f"--seconds={options.seconds}"]
    words += ["--tiny"] if options.tiny else []
    outs = {name: options.out and options.out.with_suffix(f".{name}") for name in options.backends}
    processes = [subprocess.Popen([*words, name, *([f"--out={out}"] if out else [])]) for name, out in outs.items()]
    codes = [process.wait() for process in processes]
    if options.out is not None:
        parts = [out for out in outs.values() if out.exists()]
        options.out.write_text("".join(part.read_text() for part in parts))
        for part in parts:
            part.unlink()
    for name, code in zip(outs, codes, strict=True):
        if code not in (0, 1):
            print(f"{name}: ended with exit status {code}")
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
