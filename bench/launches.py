"""What plain PyTorch starts on a GPU for a row, as far as it can be told without one: an operator a launch.

Each reads its tensors and writes its result once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .limits import Peaks
from .shapes import Row

LIBRARY = 0.65  # of the tensor cores' rate, in cuDNN's convolutions (60 to 70%)
_BETWEEN = 4e-6  # seconds that a launch takes beside what it moves: 4 to 5 in small rows of plain PyTorch on an H200


class Launch(NamedTuple):
    what: str
    bytes: float
    flops: float = 0.0
    share: float = 1.0  # of the rate of products

    def seconds(self, peaks: Peaks) -> float:
        return max(self.flops / (peaks.flops * self.share), self.bytes / peaks.bandwidth) + _BETWEEN


_ONLY_NAMES = ("device", "detach", "alias", "empty", "empty_like", "_unsafe_view")  # no kernel is behind them


class _Operators(TorchDispatchMode):
    """Notes what every operator reads and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[Launch] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        read = [one for one in tree_leaves((args, kwargs or {})) if isinstance(one, Tensor)]
        written = [one for one in tree_leaves(made) if isinstance(one, Tensor)]
        name = func.overloadpacket.__name__
        if not (func.is_view or name in _ONLY_NAMES):
            self.launches += _launches_of(name, args, read, written)
        return made


def _launches_of(name: str, args: Sequence[Any], read: Sequence[Tensor], written: Sequence[Tensor]) -> list[Launch]:
    """Of one of PyTorch's operators."""
    if name == "convolution":
        x, weight, bias = args[:3]
        made = written[0]
        products = Launch(name, _size(x) + _size(weight) + _size(made), _products(made, weight), LIBRARY)
        return [products, *([] if bias is None else [Launch("bias", 2 * _size(made))])]
    if name == "convolution_backward":
        grad, x, weight = args[:3]
        all_of_it = _size(grad) + _size(x) + _size(weight)
        gradient = Launch(name, all_of_it, _products(grad, weight), LIBRARY)
        return [gradient, gradient, Launch("bias", _size(grad))]
    # A norm reads for its statistics first, and backward for its sums.
    times = 2 if "norm" in name else 1
    return [Launch(name, times * sum(map(_size, read)) + sum(map(_size, written)))]


def _products(made: Tensor, weight: Tensor) -> float:
    return 2.0 * made.numel() * math.prod(weight.shape[1:])


def _size(tensor: Tensor) -> float:
    """In bytes; what is expanded is there once."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return float(math.prod(sizes) * tensor.element_size())


def plain(row: Row, kind: str) -> list[Launch]:
    """Of plain PyTorch."""
    with FakeTensorMode():
        shapes = row.case.shapes(row.input_shape(torch.device("cuda")))
        tensors = [None if shape is None else torch.empty(shape, dtype=row.dtype) for shape in shapes]
        if row.channels_last:
            tensors[0] = tensors[0].contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr]
        wanted = [one.requires_grad_(kind == "training") for one in tensors if one is not None]
        with _Operators() as noted:
            y = row.case.plain(*tensors)  # type: ignore[arg-type]
            if kind == "training":
                torch.autograd.grad(y, wanted, torch.empty_like(y))
    return noted.launches
