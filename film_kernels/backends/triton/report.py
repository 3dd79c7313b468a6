"""`python -m film_kernels.backends.triton.report`: every kernel and entry, compiled ahead of time for GPUs not at hand.

Beside registers and memory the table says what a step of the main loop issues (sass.py). Kernels are recorded as they
would be started for representative Problems, and compiled with the same specialisations that Triton makes at the first
call. Options: `--kernel`, `--case`, `--target` and `--dtype` choose by name, `--default`
takes the rule's own entry only, `--json` prints rows as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ...problems import conv_film
from . import launch, sass, tuning
from .forward import forward
from .grad_input import grad_input
from .grad_weight import grad_weight
from .recompute import recompute
from .vendor_pass import finish_forward, start_backward

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx1100": GPUTarget("hip", "gfx1100", 32),
}
KINDS = {"sm_80": "nvidia", "sm_90": "nvidia", "sm_100": "nvidia", "gfx942": "cdna", "gfx1100": "rdna"}
SHARED_LIMIT = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536, "gfx1100": 65_536}  # bytes
_INSTRUCTIONS = ("tcgen05.mma", "wgmma.mma_async", "mma.sync", "v_mfma", "v_smfma", "v_wmma")  # best first
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "tf32": torch.float32, "float32": torch.float32}
_KERNELS = (*tuning.KERNELS, "vendor_pass")
_FIXED = tuning.Entry("fixed", 0, 0, 0, 4, 2)  # the vendor's passes have one way to be cut

# name -> (input, weight, stride, channels_last): one of each of the rule's classes
CASES = {
    "clevr": ((64, 128, 14, 14), (128, 128, 3, 3), 1, True),
    "few_channels": ((32, 3, 224, 224), (64, 3, 3, 3), 1, False),
    "few_channels_last": ((32, 3, 224, 224), (64, 3, 3, 3), 1, True),
    "small_maps": ((16, 512, 7, 7), (512, 512, 3, 3), 1, True),
    "wide": ((32, 256, 56, 56), (256, 256, 3, 3), 1, True),
    "wide_nchw": ((32, 128, 28, 28), (128, 128, 3, 3), 1, False),
    "pointwise": ((32, 64, 56, 56), (32, 64, 1, 1), 1, True),
    "over_2_31": ((65536, 64, 32, 32), (64, 64, 3, 3), 1, True),  # elements: 64-bit offsets
    "strided": ((32, 64, 57, 57), (128, 64, 3, 3), 2, True),
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
    instruction: str
    step: int | None  # instructions of a step of the main loop, matrix instructions and divisions among them, and
    matrix: int | None  # the share of the tensor cores' rate that these allow: see sass.py
    divisions: int | None
    share: float | None


def problem_of(case: str, dtype: torch.dtype) -> conv_film.ConvFilm:
    """The representative problem `case`, on a GPU."""
    input, weight, stride, channels_last = CASES[case]
    padding = weight[2] // 2
    channels = weight[0]
    shapes = (input, weight, (channels,), (input[0], channels), (input[0], channels))
    kinds = tuple((torch.Size(shape), dtype, torch.device("cuda"), torch.strided) for shape in shapes)
    options = (stride, padding, 1, 1, "relu", 0.01, "post", 0.0, "bits")
    return conv_film.problem_of(kinds, channels_last, options)  # type: ignore


def record(problem: conv_film.ConvFilm, kernel: str, entry: tuning.Entry, gpu: str) -> list[launch.Launch]:
    """The launches of `kernel` for `problem`, with tensors that hold no data."""

    def empty(*shape: int, dtype: torch.dtype = problem.dtype, format=torch.contiguous_format) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=problem.device, memory_format=format)

    with FakeTensorMode(), launch.recording(gpu) as launches:
        input = empty(*problem.input_shape, format=problem.memory_format)
        grad = empty(*problem.out_shape, format=problem.memory_format)
        # as it is after packing, which a tensor without data cannot go through
        weight = empty(*problem.weight_shape, format=torch.contiguous_format if entry.flat else torch.channels_last)
        bias = empty(problem.out_channels)
        gamma, beta = (empty(problem.batch, problem.out_channels) for _ in range(2))
        kept, tensors = empty(1, dtype=torch.uint8), (input, weight, bias, gamma, beta)
        if kernel == "forward":
            forward(problem, tensors, kept, entry)
        elif kernel == "recompute":
            recompute(problem, grad, tensors, (True,) * 4, entry)
        elif kernel == "grad_input":
            grad_input(problem, grad, kept, weight, gamma, entry)
        elif kernel == "grad_weight":
            grad_weight(problem, grad, kept, tensors, (True,) * 4, entry)
        else:
            finish_forward(problem, grad, bias, gamma, beta, grad)
            start_backward(problem, grad, grad, bias, gamma, beta, (True,) * 4)
        return list(launches)


def source_of(recorded: launch.Launch) -> ASTSource:
    """What Triton would compile at the first call: constants, 1 and None built in, multiples of 16 marked."""
    types = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.uint8: "u8"}
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(recorded.kernel.params):
        value = recorded.arguments[parameter.name]
        special = not parameter.do_not_specialize
        aligned = False
        if parameter.is_constexpr or value is None or (special and type(value) is int and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name], aligned = "*" + types[value.dtype], True
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned = special and value % 16 == 0
        if aligned:
            attributes[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(recorded.kernel, signature, constants, attributes)


def compile_for(recorded: launch.Launch, target: str) -> dict[str, object]:
    """What a Row says of a recorded kernel on `target`."""
    options = {"num_warps": recorded.num_warps, "num_stages": recorded.num_stages}
    compiled = triton.compile(source_of(recorded), target=TARGETS[target], options=options)
    nvidia = TARGETS[target].backend == "cuda"
    assembly = compiled.asm["ptx" if nvidia else "amdgcn"]
    instruction = next((name for name in _INSTRUCTIONS if name in assembly), "-")
    registers, spills = _cubin_resources(compiled.asm["cubin"]) if nvidia else _amd_resources(assembly)
    loop = sass.main_loop(compiled.asm["cubin"], target) if nvidia else None
    counts = (None,) * 4 if loop is None else loop
    return {
        "registers": registers, "shared": compiled.metadata.shared, "spills": spills, "instruction": instruction,
        **dict(zip(("step", "matrix", "divisions", "share"), counts, strict=True)),
    }  # fmt: skip


def _cubin_resources(cubin: bytes) -> tuple[int, int]:
    text = sass.disassemble(cubin, "-res-usage")
    return tuple(max(map(int, re.findall(rf"{name}:(\d+)", text))) for name in ("REG", "STACK"))


def _amd_resources(assembly: str) -> tuple[int, int]:
    def count(name: str) -> int:
        return max(map(int, re.findall(rf"\.{name}:\s+(\d+)", assembly)))

    # a scalar register that is spilled goes to a vector register, not to memory
    return count("vgpr_count"), count("private_segment_fixed_size")


def rows(cases, kernels, targets, dtypes, default_only: bool) -> Iterator[Row]:
    """Compile what is asked for, one Row a kernel, entry and target."""
    seen = set()
    for case, dtype, kernel, target in itertools.product(cases, dtypes, kernels, targets):
        problem = problem_of(case, _DTYPES[dtype])
        with _float32_products(dtype):
            with launch.recording(KINDS[target]):
                entries = tuning.entries(problem, kernel) if kernel in tuning.KERNELS else (_FIXED,)
            chosen = entries[:1] if default_only else entries
            recorded = [(e, start) for e in chosen for start in record(problem, kernel, e, KINDS[target])]
        for entry, start in recorded:
            key = (source_of(start).hash(), start.num_warps, start.num_stages, target)
            if key not in seen:
                seen.add(key)
                name = f"{entry.name} {entry.positions}x{entry.channels}x{entry.products}"
                found = compile_for(start, target)
                yield Row(start.kernel.__name__, case, dtype, name, start.num_warps, target, **found)


@contextlib.contextmanager
def _float32_products(dtype: str) -> Iterator[None]:
    """PyTorch's setting for float32 convolutions: tf32, or for "float32" exact."""
    setting = torch.backends.cudnn.conv
    before, setting.fp32_precision = setting.fp32_precision, "tf32" if dtype == "tf32" else "ieee"
    try:
        yield
    finally:
        setting.fp32_precision = before


def main(arguments: list[str] | None = None) -> int:
    """Print the table; the exit status is 1 where a kernel spills or its shared memory does not fit."""
    parser = argparse.ArgumentParser(prog="python -m film_kernels.backends.triton.report", description=__doc__)
    parser.add_argument("--kernel", nargs="+", choices=_KERNELS, default=_KERNELS)
    parser.add_argument("--case", nargs="+", choices=CASES, default=tuple(CASES))
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=tuple(TARGETS))
    parser.add_argument("--dtype", nargs="+", choices=_DTYPES, default=("float16", "tf32", "float32"))
    parser.add_argument("--default", action="store_true")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 is set, with which nothing can be compiled")
    bad = 0
    layout = "{:21} {:18} {:9} {:22} {:>5} {:8} {:>9} {:>7} {:>6}  {:16} {:>4} {:>6} {:>9} {:>5}"
    if not chosen.json:
        print(layout.format(*(name.replace("num_", "") for name in Row._fields)))
    for row in rows(chosen.case, chosen.kernel, chosen.target, chosen.dtype, chosen.default):
        shown = ("-" if value is None else f"{value:.0%}" if isinstance(value, float) else value for value in row)
        print(json.dumps(row._asdict()) if chosen.json else layout.format(*shown), flush=True)
        bad += row.spills > 0 or row.shared > SHARED_LIMIT[row.target]
    if bad:
        print(f"{bad} of these spill, or need more shared memory than there is", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
