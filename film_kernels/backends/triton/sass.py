"""What the main loop of a kernel compiled for an NVIDIA GPU issues, counted in its machine code (SASS).

A quarter of a multiprocessor has a scheduler, which issues one instruction a cycle, and a tensor core. So a loop can
keep the tensor core busy for at most

    issue share = cycles of its matrix instructions at the tensor core's full rate / instructions of the loop

of the time, whatever memory and latencies add to that, and at most all of it. Numbers are of one warp and of one step
of the loop, along the shortest way through it that meets the most matrix instructions: what stands behind a branch that
few steps take is not counted.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import triton

# Multiplications with an addition a cycle, of a tensor core, by the factors' type, dense: 312 and 989 TFLOPS of 16 bits
# are those of 108 multiprocessors at 1.41 GHz, and of 132 at 1.83 GHz.
_RATES = {
    "sm_80": {"F16": 256, "BF16": 256, "TF32": 128},
    "sm_90": {"F16": 512, "BF16": 512, "TF32": 256},
}
_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+ )?\s*([A-Z]\S*)(.*?);", re.MULTILINE)
_WARPGROUP = re.compile(r"HGMMA\.64x(\d+)x(\d+)")
_WARP = re.compile(r"HMMA\.(16)(8)(8|16|4)\.")
_DIVISION = ("MUFU.RCP", "CALL")  # an integer division begins with a reciprocal, in 64 bits with a call


class Loop(NamedTuple):
    """A step of the main loop, of one warp."""

    instructions: int
    matrix: int  # instructions of the tensor core
    divisions: int
    share: float  # of the tensor core's full rate


class _Instruction(NamedTuple):
    name: str
    conditional: bool
    target: int | None  # of a branch, its number


def disassemble(cubin: bytes, option: str) -> str:
    """What cuobjdump, which comes with Triton, says of `cubin`."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        return subprocess.run([tool, option, path], check=True, capture_output=True, text=True).stdout


def main_loop(cubin: bytes, target: str) -> Loop | None:
    """The shortest loop with the most matrix instructions; None without one, or where `target`'s rate is not known."""
    if target not in _RATES:
        return None
    code = _parse(disassemble(cubin, "-sass"))
    loops = [(at.target, i) for i, at in enumerate(code) if at.target is not None and at.target <= i]
    steps = [step for first, last in loops if (step := _step(code, first, last, _RATES[target])) is not None]
    return min(
        (step for step in steps if step.matrix), key=lambda step: (-step.matrix, step.instructions), default=None
    )


def _parse(text: str) -> list[_Instruction]:
    lines = [match.groups() for match in _LINE.finditer(text)]
    number = {int(address, 16): i for i, (address, *_) in enumerate(lines)}
    code = []
    for _, predicate, name, operands in lines:
        goal = re.search(r"0x([0-9a-f]+)\s*$", operands.strip()) if name.startswith("BRA") else None
        conditional = predicate is not None or re.search(r"!?U?P\d", operands) is not None
        code.append(_Instruction(name, conditional, number.get(int(goal[1], 16)) if goal else None))
    return code


def _is_matrix(name: str) -> bool:
    return name.startswith(("HGMMA", "HMMA"))


def _step(code: list[_Instruction], first: int, last: int, rates: dict[str, int]) -> Loop | None:
    """The shortest way from `first` to `last` that meets the most matrix instructions; None where there is none."""
    best = {first: Loop(0, 0, 0, 0.0)}  # before an instruction; `share` holds cycles
    for i in _in_order(code, first):
        at = code[i]
        if (step := best.get(i)) is None:
            continue
        step = Loop(
            step.instructions + 1,
            step.matrix + _is_matrix(at.name),
            step.divisions + at.name.startswith(_DIVISION),
            step.share + _cycles(at.name, rates),
        )
        if i == last:
            return step._replace(share=min(1.0, step.share / step.instructions))
        for following in _following(code, i):
            known = best.get(following)
            if known is None or (-step.matrix, step.instructions) < (-known.matrix, known.instructions):
                best[following] = step
    return None


def _following(code: list[_Instruction], i: int) -> list[int]:
    at = code[i]
    if at.target is None:
        ends = (at.name == "EXIT" and not at.conditional) or i + 1 == len(code)
        return [] if ends else [i + 1]
    return [at.target, i + 1] if at.conditional and i + 1 < len(code) else [at.target]


def _in_order(code: list[_Instruction], first: int) -> list[int]:
    """What can be reached from `first`, each instruction before those that follow it (but for loops)."""
    done: list[int] = []
    seen = {first}
    stack = [(first, iter(_following(code, first)))]
    while stack:
        i, rest = stack[-1]
        following = next((j for j in rest if j not in seen), None)
        if following is None:
            done.append(i)
            stack.pop()
        else:
            seen.add(following)
            stack.append((following, iter(_following(code, following))))
    return done[::-1]


def _cycles(name: str, rates: dict[str, int]) -> float:
    """Of a warp's part of a matrix instruction, of which a group of four warps issues one together."""
    if not _is_matrix(name):
        return 0.0
    rate = next((rate for kind, rate in rates.items() if f".{kind}" in name), rates["F16"])
    if (found := _WARPGROUP.search(name)) is not None:
        columns, depth = map(int, found.groups())
        return 16 * columns * depth / rate
    if (found := _WARP.search(name)) is not None:
        return int(found[1]) * int(found[2]) * int(found[3]) / rate
    return 0.0
