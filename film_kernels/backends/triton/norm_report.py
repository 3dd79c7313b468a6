"""`python -m film_kernels.backends.triton.norm_report`: norm_film's kernels, compiled for GPUs that are not at hand.

Kernels are recorded as they would be started, forward and with all gradients, and compiled as at the first call (see
report.py). `--case`, `--target` and `--dtype` choose by name, `--default` the rule's own entries alone, and `--json`
prints rows as JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ...problems import norm_film
from . import autotune, launch, norm_tuning
from .norm_backend import TritonNormFilm
from .report import KINDS, SHARED_LIMIT, TARGETS, compile_for, source_of

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}

# name -> (input, norm, groups, activation, film_position, channels_last, channel_dim): one of each way to cut
CASES = {
    "diffusion": ((16, 320, 64, 64), "group", 32, "silu", "pre", False, 1),
    "diffusion_last": ((16, 320, 64, 64), "group", 32, "silu", "pre", True, 1),
    "odd_groups_last": ((4, 192, 64, 64), "group", 32, "silu", "pre", True, 1),
    "small_groups_last": ((64, 128, 16, 16), "group", 32, "silu", "pre", True, 1),
    "small_maps": ((64, 512, 7, 7), "group", 32, "gelu", "pre", False, 1),
    "one_group_last": ((8, 512, 32, 32), "group", 1, "silu", "pre", True, 1),
    "row_mish": ((64, 256, 400), "group", 8, "mish", "post", False, 1),
    "short_row": ((64, 256, 240), "group", 8, "mish", "post", False, 1),
    "odd_row": ((64, 256, 125), "group", 8, "mish", "post", False, 1),
    "batch": ((64, 128, 14, 14), "batch", None, "relu", "pre", False, 1),
    "tokens": ((16, 1024, 768), "channel", None, "none", "pre", False, -1),
    "long_tokens": ((16, 1024, 8192), "rms", None, "silu", "pre", False, -1),
    "rms_maps": ((16, 128, 64, 64), "rms", None, "silu", "pre", False, 1),
    "l2_maps": ((16, 512, 16, 16), "l2", None, "gelu_tanh", "post", True, 1),
    "evaluation": ((64, 128, 28, 28), "none", None, "tanh", "post", True, 1),
    "odd_rms_maps": ((16, 128, 25, 25), "rms", None, "gelu_tanh", "post", False, 1),
    "held_over_2_31": ((700000, 64, 7, 7), "group", 8, "gelu_tanh", "post", False, 1),
    "tokens_over_2_31": ((4096, 1024, 768), "channel", None, "gelu", "post", False, -1),
    "over_2_31": ((4096, 64, 128, 128), "group", 8, "silu", "pre", False, 1),  # elements: 64-bit offsets
}


class Row(NamedTuple):
    """One compiled kernel. `shared` is bytes a program, `spills` bytes of local (scratch) memory a thread."""

    kernel: str
    case: str
    dtype: str
    entry: str
    num_warps: int
    target: str
    registers: int
    shared: int
    spills: int


def problem_of(case: str, dtype: torch.dtype) -> norm_film.NormFilm:
    """The representative problem `case`, on a GPU."""
    input, norm, groups, activation, position, channels_last, channel_dim = CASES[case]
    rows = (input[0], input[channel_dim])
    shapes = (input, rows[1:], rows[1:], rows, rows)
    kinds = tuple((torch.Size(shape), dtype, torch.device("cuda"), torch.strided) for shape in shapes)
    options = (norm, groups, 1e-5, activation, 0.01, position, 1.0, channel_dim)
    return norm_film.problem_of(kinds, channels_last, options)  # type: ignore[arg-type]


def record(problem: norm_film.NormFilm, gpu: str, entry: norm_tuning.NormEntry) -> list[launch.Launch]:
    """The launches of forward and backward, with tensors that hold no data."""
    kernels, pinned = TritonNormFilm(), autotune.pinned(dict.fromkeys(norm_tuning.KERNELS, entry))
    with FakeTensorMode(), launch.recording(gpu) as launches, pinned:
        shapes = problem.tensor_shapes
        tensors = tuple(torch.empty(shape, dtype=problem.dtype, device=problem.device) for shape in shapes[1:])
        input, grad = (
            torch.empty(shapes[0], dtype=problem.dtype, device=problem.device, memory_format=problem.memory_format)
            for _ in range(2)
        )
        _, kept = kernels.forward(problem, (input, *tensors), True)
        kernels.backward(problem, grad, kept, (input, *tensors), (True,) * 5)
        return list(launches)


def rows(cases, targets, dtypes, default_only: bool) -> Iterator[Row]:
    """Compile what is asked for, one Row a kernel, entry and target."""
    seen = set()
    for case, dtype, target in itertools.product(cases, dtypes, targets):
        problem = problem_of(case, DTYPES[dtype])
        with launch.recording(KINDS[target]):
            entries = dict.fromkeys(e for kernel in norm_tuning.KERNELS for e in norm_tuning.entries(problem, kernel))
        chosen = list(entries)[: 1 if default_only else None]
        for entry, start in [(e, start) for e in chosen for start in record(problem, KINDS[target], e)]:
            key = (source_of(start).hash(), start.num_warps, start.num_stages, target)
            if key not in seen:
                seen.add(key)
                found = compile_for(start, target)
                resources = (found[name] for name in ("registers", "shared", "spills"))
                yield Row(start.kernel.__name__, case, dtype, entry.name, start.num_warps, target, *resources)  # type: ignore[arg-type]


def main(arguments: list[str] | None = None) -> int:
    """Print the table; the exit status is 1 where a kernel spills or its shared memory does not fit."""
    parser = argparse.ArgumentParser(prog="python -m film_kernels.backends.triton.norm_report", description=__doc__)
    parser.add_argument("--case", nargs="+", choices=CASES, default=tuple(CASES))
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=tuple(TARGETS))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=("bfloat16", "float32"))
    parser.add_argument("--default", action="store_true")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 is set, with which nothing can be compiled")
    bad = 0
    layout = "{:25} {:15} {:9} {:7} {:>5} {:8} {:>9} {:>7} {:>6}"
    if not chosen.json:
        print(layout.format(*(name.replace("num_", "") for name in Row._fields)))
    for row in rows(chosen.case, chosen.target, chosen.dtype, chosen.default):
        print(json.dumps(row._asdict()) if chosen.json else layout.format(*row), flush=True)
        bad += row.spills > 0 or row.shared > SHARED_LIMIT[row.target]
    if bad:
        print(f"{bad} of these spill, or need more shared memory than there is", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
