"""From a record and its tensors to the numbers that the kernels take, and the one way a kernel is started."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...activations import ACTIVATIONS
from ...layouts import is_channels_last
from ...problems.conv_film import ConvFilm
from ...problems.norm_film import NormFilm

_EXACT_CHANNELS = 4  # input channels, at most, for which the library takes no tf32, whatever it is allowed


class Sizes(NamedTuple):
    """A Problem's numbers with a height and a width; one spatial dimension is a width, with a height of 1."""

    N: int
    C: int
    H: int
    W: int
    K: int
    OH: int
    OW: int
    KH: int
    KW: int
    SH: int
    SW: int
    DH: int
    DW: int
    PH: int  # padding before
    PW: int

    @property
    def out_positions(self) -> int:
        """Of one sample."""
        return self.OH * self.OW

    @property
    def products(self) -> int:
        """Summed for one output element."""
        return self.C * self.KH * self.KW

    @property
    def bit_bytes(self) -> int:
        """Of one output position."""
        return (self.K + 7) // 8


@functools.lru_cache(maxsize=4096)
def sizes_of(problem: ConvFilm) -> Sizes:
    """Raises nothing for a problem that the backend serves."""

    def two(values: Sequence[int], of_height: int) -> tuple[int, int]:
        return (of_height, values[0]) if problem.spatial_rank == 1 else tuple(values)

    return Sizes(
        *problem.input_shape[:2],
        *two(problem.input_shape[2:], 1),
        problem.out_channels,
        *two(problem.out_size, 1),
        *two(problem.weight_shape[2:], 1),
        *two(problem.stride, 1),
        *two(problem.dilation, 1),
        *two([before for before, _ in problem.padding], 0),
    )


class Layout(NamedTuple):
    """Where the elements of a tensor lie; what a plan is made from, and remembered by."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def strides(self) -> dict[str, int]:
        """By axis: n, c, h and w of a tensor with spatial dimensions, n and k of a factor, k of a bias."""
        rank = len(self.shape)
        if rank == 3:
            return dict(zip(("sn", "sc", "sh", "sw"), (*self.stride[:2], 0, self.stride[2]), strict=True))
        names = {1: ("sk",), 2: ("sn", "sk"), 4: ("sn", "sc", "sh", "sw")}[rank]
        return dict(zip(names, self.stride, strict=True))

    @property
    def channels_fastest(self) -> bool:
        """Whether neighbours in memory are channels rather than positions."""
        along = [stride for size, stride in zip(self.shape[2:], self.stride[2:], strict=True) if size > 1]
        return self.stride[1] < min(along, default=math.inf)


Layouts = tuple[Layout | None, ...]


def layouts(*tensors: Tensor | None) -> Layouts:
    """Of each tensor, None for None."""
    return tuple([None if t is None else Layout(t.shape, t.stride()) for t in tensors])


def needs_64_bits(*found: Layout | None) -> bool:
    """Whether an offset into one of them can pass 2^31."""
    return any(
        sum((size - 1) * stride for size, stride in zip(*layout, strict=True)) >= 2**31 - 1
        for layout in found
        if layout is not None and 0 not in layout.shape
    )


def dense(*shape: int) -> Layout:
    """A tensor without gaps, as one row."""
    return Layout((math.prod(shape),), (1,))


def precision(problem: ConvFilm | NormFilm) -> str:
    """How products are taken: PyTorch's own setting for float32 convolutions, where the GPU has tf32."""
    if isinstance(problem, NormFilm):  # which has none
        return "ieee"
    if problem.device.type == "cpu" and problem.dtype == torch.bfloat16:
        return "widened"
    if problem.dtype != torch.float32 or gpu(problem.device) != "nvidia":
        return "ieee"
    few = problem.weight_shape[1] <= _EXACT_CHANNELS
    return "tf32" if torch.backends.cudnn.conv.fp32_precision == "tf32" and not few else "ieee"


def is_paired(problem: ConvFilm) -> bool:
    """Whether two elements lie in one register of an NVIDIA GPU, and are worked on at once."""
    return problem.dtype.itemsize == 2 and gpu(problem.device) == "nvidia"


def reciprocal(divisor: int) -> tuple[int, int]:
    """(factor, shift) with q // divisor = (2 * q * factor >> 32) >> shift for 0 <= q < 2^31; factor < 2^32."""
    shift = (divisor - 1).bit_length()
    return cdiv(2 ** (31 + shift), divisor), shift


def sum_dtype(problem: ConvFilm) -> torch.dtype:
    """What sums are taken and left in."""
    return torch.float64 if problem.dtype == torch.float64 else torch.float32


def options(problem: ConvFilm | NormFilm) -> dict[str, object]:
    """The activation and FiLM as the kernels take them."""
    activation = ACTIVATIONS[problem.activation]
    return {
        "lower_slope": float(activation.lower_slope(problem.negative_slope)) if activation.one_bit else 0.0,
        "gamma_offset": float(problem.gamma_offset),
        "ACTIVATION": problem.activation,
    }


def geometry(sizes: Sizes) -> dict[str, int]:
    """The kernel's own sizes, known when it is compiled."""
    return {name: getattr(sizes, name) for name in ("KH", "KW", "SH", "SW", "DH", "DW")}


def packed_weight(weight: Tensor, flat: bool) -> Tensor:
    """The weight with input channels fastest, as the kernels read it a tap at a time.

    A small weight (FLAT) is read as it is: another kernel would cost more than it saves.
    """
    if flat or weight.stride(1) == 1 or (weight.dim() < 4 and weight.shape[-1] == 1):
        return weight
    if weight.dim() == 4:
        return weight.contiguous(memory_format=torch.channels_last)
    return weight.transpose(1, 2).contiguous().transpose(1, 2)


def weight_format(weight: Tensor) -> torch.memory_format:
    """What dW is allocated in: channels_last for a weight that is."""
    return torch.channels_last if is_channels_last(weight) else torch.contiguous_format


def strides_of(**found: Layout | None) -> dict[str, int]:
    """`{name}_sn` and so on, for each axis of each; 0 for gamma, beta (n, k) and bias (k) that are None."""
    absent = {"bias": {"sk": 0}, "w": dict.fromkeys(("sn", "sc", "sh", "sw"), 0)}
    return {
        f"{name}_{axis}": stride
        for name, layout in found.items()
        for axis, stride in (absent.get(name, {"sn": 0, "sk": 0}) if layout is None else layout.strides).items()
    }


def dense_strides(name: str, channels: int, positions: int, channels_last: bool) -> dict[str, int]:
    """`{name}_sn, {name}_sk, {name}_sp` (sample, channel, position) of a tensor that is dense."""
    channel, position = (1, channels) if channels_last else (positions, 1)
    return {f"{name}_sn": channels * positions, f"{name}_sk": channel, f"{name}_sp": position}


def position_blocks(samples: int, positions: int, block: int) -> tuple[bool, int]:
    """(whether tiles do not cross samples, how many tiles there are).

    They do not where that leaves at most a sixteenth of their rows empty: then gamma is a row of the tile, not a tile.
    """
    one_sample = -positions % block * 16 <= positions
    return one_sample, samples * cdiv(positions, block) if one_sample else cdiv(samples * positions, block)


class Launch(NamedTuple):
    """One start of a kernel: what `recording` collects."""

    kernel: object
    arguments: dict[str, object]
    num_warps: int
    num_stages: int


class _Recording(NamedTuple):
    launches: list[Launch]
    gpu: str


_recording: _Recording | None = None


@contextlib.contextmanager
def recording(gpu: str) -> Iterator[list[Launch]]:
    """Within the block kernels are not started but collected as for a GPU of kind `gpu`, for compiling them ahead of
    time (for one thread only)."""
    global _recording
    before, _recording = _recording, _Recording([], gpu)
    try:
        yield _recording.launches
    finally:
        _recording = before


def recorded() -> list[Launch] | None:
    """Where kernels are collected, or None where they are started."""
    return None if _recording is None else _recording.launches


def gpu(device: torch.device) -> str:
    """The kind of GPU that kernels are for: "nvidia", "cdna" and "rdna" (AMD's), "intel", or "cpu" (interpreted)."""
    return _gpu(device) if _recording is None else _recording.gpu


@functools.cache
def _gpu(device: torch.device) -> str:
    if device.type != "cuda":
        return {"xpu": "intel"}.get(device.type, device.type)
    if torch.version.hip is None:
        return "nvidia"
    return "cdna" if torch.cuda.get_device_properties(device).warp_size == 64 else "rdna"


def multiprocessors(device: torch.device) -> int:
    """Of the GPU, or of one of its kind where kernels are recorded or interpreted."""
    if _recording is not None or device.type == "cpu":
        return {"cdna": 304, "rdna": 96, "intel": 128}.get(gpu(device), 132)
    return _multiprocessors(device)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    properties = torch.get_device_module(device).get_device_properties(device)
    return properties.gpu_subslice_count if device.type == "xpu" else properties.multi_processor_count


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The least power of 2 that is at least `n`, for n >= 1."""
    return 1 << (n - 1).bit_length()
