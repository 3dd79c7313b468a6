"""`ConvFilm`, the record of one call of conv_film: what it says, how it is checked, and its packed form.

An option is written down here and nowhere else between the front door and the kernel that reads it: as a field of the
record, in OPTIONS_SCHEMA, and in the line of `problem_of` that checks it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..activations import ACTIVATIONS, FILM_POSITIONS
from ..checks import (
    INTEGERS,
    Kind,
    check_choice,
    check_film_shape,
    check_kinds,
    finite,
    in_words,
    per_dimension,
)
from ..layouts import memory_format

TENSORS = ("input", "weight", "bias", "gamma", "beta")
REQUIRED = 2  # of them, the first ones, which are never None
Tensors = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]
Kinds = tuple[Kind, Kind, Kind | None, Kind | None, Kind | None]
_ADDRESSABLE = 2**63 - 1  # bytes
# What forward may keep for backward beside the arguments, the most first: `conv(input, weight)`, one bit an element, or
# nothing.
KEEPS = ("fast", "bits", "least")


class ConvFilm(NamedTuple):
    """Sizes, dtype, device, memory format and options of one convolution + activation + FiLM.

    A record that never changes. Sizes are plain integers, or symbolic ones while torch.compile traces. The options
    come last, in the order of `film_kernels.conv_film`'s arguments.
    """

    input_shape: tuple[int, ...]  # (N, C, *in)
    weight_shape: tuple[int, ...]  # (K, C / groups, *kernel)
    dtype: torch.dtype
    device: torch.device
    channels_last: bool  # memory format of the output, and of the input's gradient
    has_bias: bool
    has_gamma: bool
    has_beta: bool
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]  # (before, after) for each spatial dimension
    dilation: tuple[int, ...]
    groups: int
    activation: str
    negative_slope: float
    film_position: str
    gamma_offset: float
    keep: str

    @property
    def padding_before(self) -> tuple[int, ...]:
        """For each spatial dimension."""
        return tuple(before for before, _ in self.padding)

    @property
    def padding_after(self) -> tuple[int, ...]:
        """For each spatial dimension."""
        return tuple(after for _, after in self.padding)

    @property
    def spatial_rank(self) -> int:
        """1, 2 or 3."""
        return len(self.stride)

    @property
    def batch(self) -> int:
        """N."""
        return self.input_shape[0]

    @property
    def out_channels(self) -> int:
        """K."""
        return self.weight_shape[0]

    @property
    def out_size(self) -> tuple[int, ...]:
        """*out: floor((in + padding - dilation * (kernel - 1) - 1) / stride) + 1, as torch.nn.Conv2d has it."""
        return tuple(
            (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, (before, after), dilation in zip(
                self.input_shape[2:], self.weight_shape[2:], self.stride, self.padding, self.dilation, strict=True
            )
        )

    @property
    def out_shape(self) -> tuple[int, ...]:
        """(N, K, *out)."""
        return (self.batch, self.out_channels, *self.out_size)

    @property
    def tensor_shapes(self) -> tuple[tuple[int, ...], ...]:
        """What TENSORS have to be like, those that are not given too."""
        rows = (self.input_shape[0], self.weight_shape[0])
        return self.input_shape, self.weight_shape, rows[1:], rows, rows

    @property
    def tensor_dtypes(self) -> tuple[torch.dtype, ...]:
        """What TENSORS are of."""
        return (self.dtype,) * len(TENSORS)

    @property
    def memory_format(self) -> torch.memory_format:
        """What the output is allocated in."""
        return memory_format(self.channels_last, self.spatial_rank)


OPTIONS = ConvFilm._fields[ConvFilm._fields.index("stride") :]
OPTIONS_SCHEMA = (
    "int[] stride, int[] padding_before, int[] padding_after, int[] dilation, int groups, str activation, "
    "float negative_slope, str film_position, float gamma_offset, str keep"
)


class Sides(NamedTuple):
    """Padding that may be another behind a dimension than before it, as "same" makes it for even kernels."""

    before: tuple[int, ...]
    after: tuple[int, ...]


_PADDING = OPTIONS.index("padding")


def options_of(packed: Sequence[Any]) -> tuple[Any, ...]:
    """The options as `problem_of` takes them, from what OPTIONS_SCHEMA names: they differ in padding alone, which
    comes as two."""
    options = [tuple(value) if type(value) is list else value for value in packed]
    options[_PADDING : _PADDING + 2] = [Sides(*options[_PADDING : _PADDING + 2])]
    return tuple(options)


def problem_of(kinds: Kinds, channels_last: bool, options: Sequence[Any]) -> ConvFilm:
    """The record of a call with tensors of these kinds and OPTIONS as a user writes them, or a TypeError or ValueError
    that names the argument."""
    check_kinds(TENSORS, kinds)
    (input_shape, dtype, device, _), (weight_shape, *_) = kinds[:2]
    _check_ranks(input_shape, weight_shape)
    given = dict(zip(OPTIONS, options, strict=True))
    kernel = weight_shape[2:]
    stride = per_dimension("stride", given["stride"], len(kernel), least=1)
    dilation = per_dimension("dilation", given["dilation"], len(kernel), least=1)
    (groups,) = per_dimension("groups", given["groups"], 1, least=1)
    _check_shapes(kinds, groups)
    problem = ConvFilm(
        input_shape=tuple(input_shape),
        weight_shape=tuple(weight_shape),
        dtype=dtype,
        device=device,
        channels_last=channels_last,
        has_bias=kinds[2] is not None,
        has_gamma=kinds[3] is not None,
        has_beta=kinds[4] is not None,
        stride=stride,
        padding=_padding(given["padding"], stride, dilation, kernel),
        dilation=dilation,
        groups=groups,
        activation=check_choice("activation", given["activation"], ACTIVATIONS),
        negative_slope=finite("negative_slope", given["negative_slope"]),
        film_position=check_choice("film_position", given["film_position"], FILM_POSITIONS),
        gamma_offset=finite("gamma_offset", given["gamma_offset"]),
        keep=check_choice("keep", given["keep"], KEEPS),
    )
    _check_output(problem, given)
    return problem


def _check_ranks(input_shape: torch.Size, weight_shape: torch.Size) -> None:
    if len(weight_shape) not in (3, 4, 5):
        raise ValueError(
            f"weight must have shape (K, C / groups, *kernel) with 1, 2 or 3 kernel sizes, got {in_words(weight_shape)}"
        )
    if len(input_shape) != len(weight_shape):  # a batch has been put in front of an input without one
        raise ValueError(
            f"input must have {len(weight_shape)} dimensions (N, C, *in), or {len(weight_shape) - 1} without a batch, "
            f"for a weight of shape {in_words(weight_shape)}; got {in_words(input_shape)}"
        )


def _check_shapes(kinds: Kinds, groups: int) -> None:
    """That the shapes of all the tensors fit one another."""
    input_shape, weight_shape = kinds[0][0], kinds[1][0]
    bias_shape, gamma_shape, beta_shape = (None if kind is None else kind[0] for kind in kinds[2:])
    out_channels, in_channels = weight_shape[0], weight_shape[1] * groups
    if out_channels < 1 or any(size < 1 for size in weight_shape[2:]):
        raise ValueError(f"weight must have at least one output channel and kernel tap, got {in_words(weight_shape)}")
    if out_channels % groups:
        raise ValueError(f"groups must divide the output channels of weight, {out_channels}, got {groups}")
    if input_shape[1] != in_channels:
        raise ValueError(
            f"input must have {in_channels} channels for a weight of shape {in_words(weight_shape)} "
            f"and groups={groups}, got {input_shape[1]} in shape {in_words(input_shape)}"
        )
    if bias_shape is not None and tuple(bias_shape) != (out_channels,):
        raise ValueError(f"bias must have shape (K,) = ({out_channels},), got {in_words(bias_shape)}")
    for name, shape in (("gamma", gamma_shape), ("beta", beta_shape)):
        if shape is not None:
            check_film_shape(name, shape, input_shape[0], out_channels, len(weight_shape) - 2)


def _check_output(problem: ConvFilm, given: dict[str, Any]) -> None:
    """That there is an output of that size."""
    if any(size < 0 for size in problem.out_size):
        raise ValueError(
            f"input is smaller than the kernel: shape {in_words(problem.input_shape)} with "
            f"padding={given['padding']!r} and weight {in_words(problem.weight_shape)}, "
            f"dilation={given['dilation']!r} gives output size {in_words(problem.out_size)}"
        )
    known = not torch.compiler.is_compiling() and INTEGERS.issuperset(map(type, problem.out_shape))
    if known and math.prod(problem.out_shape) * problem.dtype.itemsize > _ADDRESSABLE:
        raise ValueError(
            f"input of shape {in_words(problem.input_shape)} with padding={given['padding']!r} gives an output of "
            f"shape {in_words(problem.out_shape)}, which is more than can be addressed"
        )


def _padding(
    padding: Any, stride: tuple[int, ...], dilation: tuple[int, ...], kernel: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    if isinstance(padding, str):
        if padding == "valid":
            return ((0, 0),) * len(kernel)
        if padding != "same":
            raise ValueError(f"padding must be 'same', 'valid' or integers, got {padding!r}")
        if any(s != 1 for s in stride):
            raise ValueError(f"padding='same' needs stride 1, got stride={stride}")
        totals = tuple(d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        return tuple((total // 2, total - total // 2) for total in totals)
    if isinstance(padding, Sides):
        before = per_dimension("padding_before", padding.before, len(kernel), least=0)
        return tuple(zip(before, per_dimension("padding_after", padding.after, len(kernel), least=0), strict=True))
    return tuple((p, p) for p in per_dimension("padding", padding, len(kernel), least=0))
