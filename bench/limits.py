"""How near a step comes to what the machine can do, measured in the same run.

A convolution's limit is the larger of its products at the speed of a large matrix product and its tensors at the speed
of a large copy. A norm's is a number of passes over memory (bench/passes.py) at the speed of a copy of its own input,
which is timed in turn with the peers.
"""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch

from film_kernels.problems.conv_film import ConvFilm

from .conv_case import ConvCase
from .norm_case import NormCase
from .passes import is_past_the_caches, passes
from .shapes import Row
from .timing import ROUNDS, interleaved
from .work import Work

COPY = "copy"  # of the row's input, beside the peers
_PASSES_OF_A_COPY = 2  # it is read, and written
_SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrices
_COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 31}
_SECONDS = 1.0  # for both, or five runs of each


class Peaks(NamedTuple):
    """What a large matrix product and a large copy reach."""

    flops: float  # a second, in the dtype
    bandwidth: float  # bytes a second, read and written


class Cost(NamedTuple):
    """What any way of computing a step must at least do."""

    flops: float
    bytes: float


@contextlib.contextmanager
def _products_as_in_convolutions() -> Iterator[None]:
    """float32 matrix products with the precision that cuDNN's convolutions are allowed (tf32, unless set otherwise)."""
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    settings.fp32_precision = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    try:
        yield
    finally:
        settings.fp32_precision = before


MEASURED: dict[torch.dtype, Peaks] = {}  # in this process, which is on one device


def peaks(device: torch.device, dtype: torch.dtype) -> Peaks:
    """Measured once a process: medians of several runs."""
    if dtype not in MEASURED:
        MEASURED[dtype] = _measure(device, dtype)
    return MEASURED[dtype]


def _measure(device: torch.device, dtype: torch.dtype) -> Peaks:
    side, size = _SIDE[device.type], _COPY_BYTES[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    with _products_as_in_convolutions():
        times = interleaved({"product": lambda: a @ b, "copy": lambda: target.copy_(source)}, device, _SECONDS, ROUNDS)
    product, copy = (statistics.median(times[name]) for name in ("product", "copy"))
    return Peaks(2 * side**3 / product, 2 * size / copy)


def beside(work: Work) -> dict[str, Callable[[], object]]:
    """What has to be timed in turn with the peers of a row, for its limit."""
    if not isinstance(work.row.case, NormCase):
        return {}
    source = work.input.detach()
    target = torch.empty_like(source)
    return {COPY: lambda: target.copy_(source)}


def share_of_limit(
    row: Row, device: torch.device, kind: str, seconds: float, others: Mapping[str, Sequence[float]]
) -> float | None:
    """The least time that the machine could need, as a share of `seconds`; `others` are the times of `beside`. None
    where a norm's input and output lie in the caches, for which memory is no limit."""
    if isinstance(row.case, ConvCase):
        return share(cost(row, device, kind), peaks(device, row.dtype), seconds)
    if not is_past_the_caches(row, device):
        return None
    return passes(row, device, kind) / _PASSES_OF_A_COPY * statistics.median(others[COPY]) / seconds


def cost(row: Row, device: torch.device, kind: str) -> Cost:
    """Products and sums of the direct convolution, and each tensor read or written once where it must be.

    forward: x, W read, y written. training: besides, the gradient of y and x and W again are read for the backward,
    and the gradients of x and W are written; dx and dW are a convolution's worth of products each. What is per channel
    or one bit an element is left out.
    """
    problem = row.problem(device)
    assert isinstance(problem, ConvFilm)
    x, w, y = (math.prod(shape) for shape in (problem.input_shape, problem.weight_shape, problem.out_shape))
    convolution = 2.0 * y * math.prod(problem.weight_shape[1:])
    item = problem.dtype.itemsize
    if kind == "training":
        return Cost(3 * convolution, item * (3.0 * x + 3.0 * w + 2.0 * y))
    return Cost(convolution, item * (x + w + y))


def share(cost: Cost, peaks: Peaks, seconds: float) -> float:
    """The least time that the machine could need, as a share of `seconds`. Above 1 where caches beat the memory or an
    algorithm (Winograd's) saves products."""
    return max(cost.flops / peaks.flops, cost.bytes / peaks.bandwidth) / seconds
