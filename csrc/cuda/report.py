"""`python csrc/cuda/report.py [ARCHITECTURE ...]`: what the compiler made of the CUDA kernels, a line each.

Registers, stack frame and spills (bytes a thread) are the assembler's own figures, instructions are read off the
machine code; shared memory is asked for at launch. A step is what the innermost loop with matrix instructions does in
one round: its instructions, the matrix instructions among them, and the share of the tensor cores' peak that can be
issued. A scheduler issues one instruction a cycle, and one matrix instruction (HMMA.16816, or HMMA.1688 of tf32) keeps
its tensor core busy for 8 cycles on sm_80 (1024 products a cycle in a multiprocessor of four schedulers, 2048 in the
instruction) and for 4 on sm_90: the share is matrix instructions * cycles / instructions, at most 100%.

The kernels by Hopper's own instructions are listed for 90 where CUTLASS's headers are found
(hopper/cutlass_headers.py). One of their matrix instructions is a warpgroup's, of as many cycles as its shape says: no
share is given.

Architectures are numbers such as 80, or else those of setup.py.
Needs nvcc, and cuobjdump of the CUDA toolkit or as Triton brings it, and no GPU. The exit status is 1 where a kernel
spills or uses local memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ARCHITECTURES = ("80", "86", "89", "90", "100", "120")
MATRIX = ("HMMA", "HGMMA", "UTCHMMA")  # tensor cores' instructions
MATRIX_CYCLES = {"80": 8, "90": 4}  # that one matrix instruction takes
INSTRUCTIONS = {"matrix": MATRIX, "ldmatrix": ("LDSM",), "cp.async": ("LDGSTS",), "local": ("LDL", "STL")}
HOPPER = HERE / "hopper"
HOPPER_INSTRUCTIONS = {"wgmma": ("HGMMA",), "tma": ("UTMALDG",)}
sys.path.insert(0, str(HOPPER))
import cutlass_headers  # noqa: E402


class Row(NamedTuple):
    """One kernel on one architecture; `stack` and `spills` are bytes a thread, `instructions` some of INSTRUCTIONS.

    `step` and `step_matrix` count the instructions of one step of the main loop, 0 where no loop has matrix products.
    """

    file: str
    kernel: str
    architecture: str
    registers: int
    stack: int
    spills: int
    step: int
    step_matrix: int
    instructions: tuple[str, ...]

    @property
    def issue_share(self) -> str:
        """Of the tensor cores' peak, or "" where it is not known."""
        cycles = MATRIX_CYCLES.get(self.architecture)
        return f"{min(1.0, self.step_matrix * cycles / self.step):.0%}" if cycles and self.step else ""

    @property
    def is_bad(self) -> bool:
        """Whether registers did not suffice."""
        return self.stack > 0 or self.spills > 0 or "local" in self.instructions


def cuobjdump() -> str:
    """The tool's path. Raises FileNotFoundError where there is none."""
    found = shutil.which("cuobjdump")
    spec = importlib.util.find_spec("triton")
    if found is None and spec is not None and spec.origin is not None:
        beside = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        found = str(beside) if beside.exists() else None
    if found is None:
        raise FileNotFoundError("cuobjdump was found neither on PATH nor in Triton")
    return found


def rows_of(source: Path, architecture: str) -> list[Row]:
    """Compile one file for one architecture. Raises CalledProcessError, with nvcc's own words, where it does not."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "kernels.o"
        flags = [f"-gencode=arch=compute_{architecture},code=sm_{architecture}"]
        if source.parent == HOPPER:
            flags = cutlass_headers.flags(cutlass_headers.folders() or [])
        command = ["nvcc", "-std=c++17", "-O3", "-Xptxas", "-v", *flags, f"-I{HERE}", "-c", source, "-o", target]
        said = subprocess.run(command, capture_output=True, text=True)
        if said.returncode:
            raise subprocess.CalledProcessError(said.returncode, command, said.stdout, said.stderr)
        code = subprocess.run([cuobjdump(), "--dump-sass", target], check=True, capture_output=True, text=True).stdout
    assembly = dict(re.findall(r"Function : (\w+)\n(.*?)(?=Function : |\Z)", code, re.S))
    found = []
    for name, properties in re.findall(
        r"Compiling entry function '(\w+)'(.*?)(?=Compiling entry|\Z)", said.stderr, re.S
    ):
        stack, stores, loads = map(int, re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", properties))
        registers = int(re.search(r"Used (\d+) registers", properties)[1])
        words = set(re.findall(r"\b([A-Z]+)\b", assembly[name]))
        kinds = INSTRUCTIONS | (HOPPER_INSTRUCTIONS if source.parent == HOPPER else {})
        instructions = tuple(kind for kind, some in kinds.items() if words & set(some))
        row = Row(
            source.stem, readable(name), architecture, registers, stack, stores + loads, *step_of(assembly[name]),
            instructions,
        )  # fmt: skip
        found.append(row)
    return sorted(found)


def step_of(assembly: str) -> tuple[int, int]:
    """How many instructions the innermost loop with matrix instructions has, and how many of those there are."""
    lines = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^/\n]+?);", assembly)]
    loops = []
    for end, text in lines:
        jump = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)
        if jump and int(jump[1], 16) < end:
            body = [inside for at, inside in lines if int(jump[1], 16) <= at <= end]
            matrix = sum(any(re.search(rf"\b{name}\b", inside) for name in MATRIX) for inside in body)
            if matrix:
                loops.append((len(body), matrix))
    return min(loops, default=(0, 0))


def readable(mangled: str) -> str:
    """A kernel's name and template arguments."""
    name = subprocess.run(["c++filt", mangled], check=True, capture_output=True, text=True).stdout.strip()
    name = re.sub(r"\((?:anonymous namespace|int|bool)\)(?:::)?|film::cuda::|matrix::|direct::|^void ", "", name)
    return re.sub(r"\(.*\)$", "", name)


def rows(architectures: Sequence[str]) -> list[Row]:
    """All kernels, on each architecture."""
    jobs = [(source, architecture) for source in sorted(HERE.glob("*.cu")) for architecture in architectures]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [row for found in pool.map(lambda job: rows_of(*job), jobs) for row in found]


def hopper_rows() -> list[Row]:
    """The kernels by Hopper's own instructions, none where CUTLASS's headers are not found."""
    sources = sorted(HOPPER.glob("*.cu")) if cutlass_headers.folders() is not None else []
    return [row for source in sources for row in rows_of(source, "90a")]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python csrc/cuda/report.py", description=__doc__)
    parser.add_argument("architecture", nargs="*", default=ARCHITECTURES)
    architectures = parser.parse_args().architecture
    found = [*rows(architectures), *(hopper_rows() if "90" in architectures else [])]
    width = max(len(row.kernel) for row in found)
    layout = f"{{:20}} {{:{width}}} {{:>4}} {{:>9}} {{:>5}} {{:>6}} {{:>5}} {{:>6}} {{:>5}}  {{}}"
    print(
        layout.format("file", "kernel", "sm", "registers", "stack", "spills", "step", "matrix", "issue", "instructions")
    )
    for row in found:
        print(layout.format(*row[:-1], row.issue_share, ", ".join(row.instructions)))
    bad = sum(row.is_bad for row in found)
    if bad:
        print(f"{bad} of these have too few registers", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
