"""`python -m bench.expected`: how long each row should take on an NVIDIA H100, worked out on a machine without one.

To be held against what is measured there: a kernel that misses its figure by far has something that was not understood.
A launch takes the longer of its products, at the share of the tensor cores' measured rate that its main loop can issue
(counted in machine code compiled ahead of time, backends/triton/sass.py), and of its tensors, each read and written
once, at the rate of a large copy; and the time between two launches. Plain PyTorch is an operator a launch.

With `--measured bench/results/<card>/first_times.json` the rates of that card are used, and its times stand beside.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch

from film_kernels import backends
from film_kernels.backends.gpu_conv_film import GpuConvFilmKernels
from film_kernels.backends.triton import launch, norm_backend, report, tuning
from film_kernels.problems import Problem
from film_kernels.problems.conv_film import ConvFilm

from .conv_case import ConvCase
from .launches import LIBRARY, Launch, plain
from .limits import Peaks, cost, share
from .norm_case import NormCase
from .passes import PASSES, PASSES_WITH_A_GROUP_IN_CACHE
from .results import KINDS
from .shapes import ROWS, Row
from .tables import table

_CUDA = torch.device("cuda")  # of records; nothing is allocated there
_HELD = 96 * 1024  # bytes of a group that the norm kernels keep in shared memory (csrc/cuda/norm_cut.h)
_TARGET = "sm_90"
_EXPLAINED = """\
Worked out by `python -m bench.expected` without a card, to be held against what is measured: each tensor once at the
rate of a large copy, products at the share of the tensor cores' rate that a main loop can issue ("issue", the least of
a step's launches; 65% for the library's convolutions), and 4 us a launch. `floor` is what anything must take. Plain
PyTorch is an operator a launch."""

# An H200 has the multiprocessors and clocks of an H100 (SXM), and 4.8 TB/s of memory for its 3.35.
_H200 = Path(__file__).parent / "results/nvidia-h200/first_times.json"
_MEMORY_OF_AN_H100 = 3.35 / 4.8
_FLOAT32_WITHOUT_TENSOR_CORES = 60e12  # products and sums a second of exact float32, of 67e12 on paper


@contextlib.contextmanager
def _as_on_a_card() -> Iterator[None]:
    """Within it the backends choose as on a card that was never measured by its user."""
    hopper = mock.patch.object(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    there = mock.patch.object(norm_backend, "why_nowhere", lambda: None)
    with hopper, there, launch.recording("nvidia"):
        yield


def serving(problem: Problem) -> str:
    """The name of the backend that would be chosen on a card."""
    with _as_on_a_card():
        for name in ("cuda", "triton", "vendor"):
            kernels = backends.BACKENDS[name].of(problem)
            if kernels.why_not(problem) is None and not kernels.is_slow(problem):
                return name
    return "reference"


def ours(row: Row, kind: str, keep: str = "fast") -> tuple[str, list[Launch]]:
    """The backend, as bench/peers.py names it with what it keeps, and its launches."""
    problem = row.problem(_CUDA)
    if not isinstance(problem, ConvFilm):
        return serving(problem), _norm(row, kind)
    problem = problem._replace(keep=keep)
    name = serving(problem)
    kernels = backends.BACKENDS[name].of(problem)
    if isinstance(kernels, GpuConvFilmKernels):
        problem = kernels.as_kept(problem)
    peer = f"{name} {problem.keep}" if kind == "training" and problem.keep != "fast" and name != "vendor" else name
    return peer, _conv(problem, kind, name)


def _norm(row: Row, kind: str) -> list[Launch]:
    case = row.case
    assert isinstance(case, NormCase)
    size = math.prod(row.input_shape(_CUDA)) * row.dtype.itemsize
    held = _is_held(row, _HELD)
    forward = [Launch("all", 2 * size)] if held else [Launch("sums", size), Launch("y", 2 * size)]
    backward = [Launch("sums", 2 * size), Launch("finish", 0.0), Launch("dx", 3 * size)]
    return forward + backward * (kind == "training")


def _is_held(row: Row, room: int) -> bool:
    assert isinstance(row.case, NormCase)
    return row.case.read_together(row.input_shape(_CUDA), row.channels_last) * row.dtype.itemsize <= room


def _conv(problem: ConvFilm, kind: str, name: str) -> list[Launch]:
    item = problem.dtype.itemsize
    x, w, y = (
        float(math.prod(shape) * item) for shape in (problem.input_shape, problem.weight_shape, problem.out_shape)
    )
    flops = 2.0 * y / item * math.prod(problem.weight_shape[1:])

    def fused(kernel: str, bytes: float) -> Launch:
        return Launch(kernel, bytes, flops, _counted(problem, kernel) if name == "triton" else 1.0)

    library = [Launch("library", x + w + y, flops, LIBRARY)]
    through_the_library = [*library, Launch("after", 2 * y)]
    alone = through_the_library if name == "vendor" else [fused("forward", x + w + y)]
    if kind == "forward":
        return alone
    if problem.keep == "bits":
        gradients = [fused("grad_input", x + w + y), fused("grad_weight", x + w + y)]
        return [*alone, *gradients, Launch("finish", 0.0)]
    gradients = [Launch("finish", 0.0), *library * 2]
    if problem.keep == "fast":
        return [*through_the_library, Launch("before", 3 * y), *gradients]
    again = [*library, Launch("before", 3 * y)] if name == "vendor" else [fused("recompute", x + w + 2 * y)]
    return [*alone, *again, *gradients]


def _counted(problem: ConvFilm, kernel: str) -> float:
    """The issue share of a Triton kernel's main loop, with the entry that the rule takes; 1 where it has no matrix
    product."""
    with launch.recording("nvidia"):
        entry = tuning.entries(problem, kernel)[0]
    found = [report.compile_for(one, _TARGET)["share"] for one in report.record(problem, kernel, entry, "nvidia")]
    return min((one for one in found if one is not None), default=1.0)  # type: ignore[type-var,return-value]


def _floor(row: Row, kind: str, peaks: Peaks) -> float:
    """Seconds that anything must take (bench/limits.py, bench/passes.py)."""
    if isinstance(row.case, ConvCase):
        return share(cost(row, _CUDA, kind), peaks, 1.0)
    room = 228 * 1024  # of a multiprocessor
    times = (PASSES_WITH_A_GROUP_IN_CACHE if _is_held(row, room) else PASSES)[kind]
    return times * math.prod(row.input_shape(_CUDA)) * row.dtype.itemsize / peaks.bandwidth


def _peaks(path: Path, memory: float) -> dict[torch.dtype, Peaks]:
    told = json.loads(path.read_text())["peaks"]
    return {getattr(torch, name): Peaks(one["flops"], one["bandwidth"] * memory) for name, one in told.items()}


def _of_row(row: Row, peaks: Mapping[torch.dtype, Peaks]) -> Peaks:
    """float32 with few channels is exact."""
    found = peaks[row.dtype]
    few = isinstance(row.case, ConvCase) and row.case.weight[1] <= 4
    return found._replace(flops=_FLOAT32_WITHOUT_TENSOR_CORES) if few and row.dtype == torch.float32 else found


class Line(NamedTuple):
    """A row and kind of step; times in seconds, `floor` of anything that computes it."""

    row: str
    kind: str
    backend: str
    launches: int
    floor: float
    share: float  # the least of its launches
    expected: float
    plain: float


def lines(peaks: Mapping[torch.dtype, Peaks], keep: str, names: Sequence[str]) -> Iterator[Line]:
    for name in names:
        row = ROWS[name]
        at = _of_row(row, peaks)
        for kind in KINDS:
            backend, launches = ours(row, kind, keep)
            seconds, others = (sum(one.seconds(at) for one in some) for some in (launches, plain(row, kind)))
            least = min(one.share for one in launches)
            yield Line(name, kind, backend, len(launches), _floor(row, kind, at), least, seconds, others)


class Beside(NamedTuple):
    """What was measured on a card, by row and kind: seconds of each peer."""

    seconds: Mapping[tuple[str, str], Mapping[str, float]]

    @classmethod
    def read(cls, path: Path) -> Beside:
        """first_times.json. Raises OSError where it is not there."""
        found = {}
        for one in json.loads(path.read_text())["rows"]:
            peers = {name: told["us"] * 1e-6 for name, told in one.get("peers", {}).items() if isinstance(told, dict)}
            found[one["row"], one["kind"]] = peers
        return cls(found)

    def cells(self, line: Line) -> list[str]:
        """Ours, plain PyTorch's, and how many times as long that takes."""
        peers = self.seconds.get((line.row, line.kind), {})
        ours, plain = (peers.get(name) for name in (line.backend, "plain"))
        return [_us(ours), _us(plain), f"{plain / ours:.2f}" if ours and plain else "-"]


def _us(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e6:.3g}"


def report_of(found: Sequence[Line], card: str, beside: Beside | None) -> str:
    """In Markdown."""
    header = ["", "", "serves", "launches", "floor, us", "issue", "us", "plain, us", "plain / ours"]
    body = [
        [
            line.row, line.kind, line.backend, str(line.launches), _us(line.floor), f"{line.share:.0%}",
            _us(line.expected), _us(line.plain), f"{line.plain / line.expected:.2f}",
            *(beside.cells(line) if beside else []),
        ]
        for line in found
    ]  # fmt: skip
    text = [f"# What is expected on an NVIDIA {card}", _EXPLAINED]
    text.append(table([*header, *(["measured, us", "plain, us", "plain / ours"] if beside else [])], body))
    for kind in KINDS:
        ratios = [line.plain / line.expected for line in found if line.kind == kind]
        if ratios:
            mean, least = statistics.geometric_mean(ratios), min(ratios)
            text.append(f"{kind}: plain PyTorch takes {mean:.2f} times as long in the mean, {least:.2f} at the least.")
    return "\n\n".join(text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.expected", description=__doc__)
    parser.add_argument("--measured", type=Path, help="first_times.json of an H200: its rates, its rows, and its times")
    parser.add_argument("--keep", default="fast", choices=("fast", "bits", "least"))
    parser.add_argument("--only", default="", help="rows whose name begins so")
    chosen = parser.parse_args(arguments)
    beside = Beside.read(chosen.measured) if chosen.measured else None
    peaks = _peaks(chosen.measured, 1.0) if chosen.measured else _peaks(_H200, _MEMORY_OF_AN_H100)
    names = [name for name in ROWS if name.startswith(chosen.only)]
    found = list(lines(peaks, chosen.keep, names))
    if beside:
        found = [line for line in found if (line.row, line.kind) in beside.seconds]
    print(report_of(found, "H200" if beside else "H100", beside))
    return 0


if __name__ == "__main__":
    sys.exit(main())
