"""What is made of a weight once, for inference: the weight as a CPU kernel reads it, and with a BatchNorm in it.

It is kept for as long as the weight is there, and is what it was: a write is seen by PyTorch's count of them, and other
memory by its address. A write through `.data`, or through numpy, is not.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from . import arguments, ops
from .backends import BACKENDS, pinned, remembered_choice
from .backends.base import Kernels
from .backends.cpu import CpuConvFilm
from .identity import by_identity
from .problems.conv_film import ConvFilm, Tensors

MOST_BYTES = 1 << 30  # of all packed weights of a process; weights beyond that are packed at every call
_MOST_OF_ONE = 64  # things made of one weight: sizes of the input may change without end
_NO_GRADIENT = (
    "film_kernels.fuse(model, frozen=True) has packed a convolution's weight for inference, which has no gradient: "
    "call the model under torch.no_grad(), or fuse it without frozen=True"
)


class _State(NamedTuple):
    """What tells whether a tensor that is still there has become another, or has been written to."""

    address: int
    version: int
    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype


class _Made(NamedTuple):
    """`of` are the other tensors that it was made of, which are kept so that nothing else takes their addresses."""

    states: list[_State | None]
    of: Sequence[Tensor | None]
    value: Any


_made: WeakIdKeyDictionary = WeakIdKeyDictionary()  # of each weight, by what it is made for


def remembered(weight: Tensor, others: Sequence[Tensor | None], purpose: Hashable, make: Callable[[], Any]) -> Any:
    """`make()`, of `weight` and `others`, or what it gave when it was last asked for with the same tensors for that
    `purpose`. It may not hold `weight` itself."""
    states = [None if tensor is None else _state_of(tensor) for tensor in (weight, *others)]
    all_made = _made.setdefault(weight, {})
    found = all_made.get(purpose)
    if found is None or found.states != states:
        before_a_write = [key for key, one in all_made.items() if one.states[0] != states[0]]
        for key in [*all_made] if len(all_made) >= _MOST_OF_ONE else before_a_write:
            del all_made[key]
        found = all_made[purpose] = _Made(states, others, make())
    return found.value


def conv_film_packed(input: Tensor, weight: Tensor, bias: Tensor | None = None, gamma: Tensor | None = None,
                     beta: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
                     *, activation: str = "relu", negative_slope: float = 0.01, film_position: str = "post",
                     gamma_offset: float = 0.0, keep: str = "fast") -> Tensor:  # fmt: skip
    """`conv_film`, without a gradient, from a weight that is packed once where a CPU kernel serves."""
    problem, tensors, unbatched = arguments.prepare(
        (input, weight, bias, gamma, beta),
        (stride, padding, dilation, groups, activation, negative_slope, film_position, gamma_offset, keep),
    )
    y = _call(problem, tensors)
    return y.squeeze(0) if unbatched else y


def _call(problem: ConvFilm, tensors: Tensors) -> Tensor:
    pin = pinned(None)
    if not ops.is_watched(tensors):
        kernels = _choice(problem, pin)
        if isinstance(kernels, CpuConvFilm):
            packed = remembered(tensors[1], (), problem, lambda: _packed(kernels, problem, tensors[1]))
            if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
                return _WithoutGradient.apply(kernels, problem, packed, *tensors)
            return kernels.forward_packed(problem, tensors, packed)
    return ops.call(problem, pin, tensors)


class PackedOnce:
    """`conv_film_packed` without its checks, for one problem and the weight of the last call."""

    @classmethod
    def of(cls, problem: ConvFilm) -> Callable[..., Tensor] | None:
        """Such a function; where nothing is packed, that of the kernels which serve, or None where they have none."""
        kernels = _choice(problem, None)
        return cls(kernels, problem) if isinstance(kernels, CpuConvFilm) else kernels.prepared(problem)

    def __init__(self, kernels: CpuConvFilm, problem: ConvFilm) -> None:
        self._kernels, self._problem, self._forward = kernels, problem, kernels.prepared(problem)
        self._weight: Callable[[], Tensor | None] = lambda: None
        self._packed: Callable[[], Tensor | None] = lambda: None  # kept by `remembered`, not beyond that
        self._state: _State | None = None

    def __call__(self, input: Tensor, weight: Tensor, bias: Any, gamma: Any, beta: Any) -> Tensor:
        packed = self._packed()
        if packed is None or self._weight() is not weight or self._state != _state_of(weight):
            packed = remembered(weight, (), self._problem, lambda: _packed(self._kernels, self._problem, weight))
            if packed is not None:
                self._weight, self._packed, self._state = weakref.ref(weight), weakref.ref(packed), _state_of(weight)
        return self._forward(input, weight, bias, gamma, beta, packed)


def _choice(problem: ConvFilm, pin: str | None) -> Kernels:
    """The kernels that serve where the weight is packed."""
    kernels = remembered_choice(problem, pin)  # not remembered here, for it may be forgotten
    packed = _which_gain(problem) if pin is None else None
    return kernels if packed is None else packed


@by_identity
def _which_gain(problem: ConvFilm) -> CpuConvFilm | None:
    """Kernels that are fast with a packed weight, whether or not they are chosen without."""
    cpu = BACKENDS["cpu"]
    if problem.device.type == "cpu" and cpu.unavailable() is None and cpu.why_not(problem) is None:
        kernels = cpu.of(problem)
        if isinstance(kernels, CpuConvFilm) and not kernels.is_slow(problem, "alone packed"):
            return kernels
    return None


class _WithoutGradient(torch.autograd.Function):
    """The same where a gradient may be asked for: then it says why there is none."""

    @staticmethod
    def forward(ctx, kernels, problem, packed, *tensors):
        return kernels.forward_packed(problem, tensors, packed)

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError(_NO_GRADIENT)


def _packed(kernels: CpuConvFilm, problem: ConvFilm, weight: Tensor) -> Tensor | None:
    """`weight` as the kernels read it for `problem`; None where there is no room for it."""
    made = kernels.pack(problem, weight.detach())  # with a history it would keep the weight
    for other in _packed_weights(_made[weight]):  # for another size of the input it may be the same
        if other.shape == made.shape and other[0] == made[0]:
            return other
    kept = {id(one): one.nbytes for all_made in _made.values() for one in _packed_weights(all_made)}
    return made if sum(kept.values()) + made.nbytes <= MOST_BYTES else None


def _packed_weights(all_made: dict[Hashable, _Made]) -> list[Tensor]:
    return [
        made.value for purpose, made in all_made.items() if isinstance(purpose, ConvFilm) and made.value is not None
    ]


def _state_of(tensor: Tensor) -> _State:
    version = 0 if tensor.is_inference() else tensor._version
    return _State(tensor.data_ptr(), version, tensor.shape, tensor.stride(), tensor.dtype)
