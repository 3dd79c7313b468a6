"""`NormFilm`, the record of one call of norm_film: what it says, how it is checked, and its packed form.

As for conv_film, an option is written down as a field of the record, in OPTIONS_SCHEMA, and in the line of `problem_of`
that checks it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..activations import ACTIVATIONS, FILM_POSITIONS
from ..checks import Kind, check_choice, check_film_shape, check_kinds, finite, in_words, per_dimension
from ..layouts import memory_format

TENSORS = ("input", "weight", "bias", "gamma", "beta")
REQUIRED = 1  # of them, the first ones, which are never None
Tensors = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]
Kinds = tuple[Kind, Kind | None, Kind | None, Kind | None, Kind | None]

# What is normalised together: C/G channels and all positions of a sample; a channel of all samples; the channels of one
# position, with and without their mean, and by their length.
NORMS = ("group", "batch", "channel", "rms", "l2")
# The input as it is, for whom the statistics are known beforehand and stand in weight and bias.
NO_NORM = "none"
OF_POSITIONS = ("channel", "rms", "l2")
_RANKS = (2, 3, 4, 5)


def sums_of(dtype: torch.dtype) -> torch.dtype:
    """The dtype of statistics and sums of tensors of a dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def shape_of_statistics(norm: str, num_groups: int, batch: int, channels: int, positions: int) -> tuple[int, int]:
    """Two rows, means and variances, with a column for each group; one, where the mean is not taken: that of mean
    squares ("rms") or of lengths ("l2")."""
    if norm == "group":
        return 2, batch * num_groups
    if norm == "batch":
        return 2, channels
    if norm == NO_NORM:
        return 0, 0
    return 2 if norm == "channel" else 1, batch * positions


class NormFilm(NamedTuple):
    """Sizes, dtypes, device, memory format and options of one normalisation + FiLM + activation.

    A record that never changes. Sizes are plain integers, or symbolic ones while torch.compile traces. The options
    come last, in the order of `film_kernels.norm_film`'s arguments.
    """

    input_shape: tuple[int, ...]  # (N, C, *spatial), or (N, *spatial, C) where channel_dim is -1
    dtype: torch.dtype  # of all tensors but weight and bias
    parameter_dtype: torch.dtype  # of weight and bias
    device: torch.device
    channels_last: bool  # memory format of the output, and of the input's gradient
    has_weight: bool
    has_bias: bool
    has_gamma: bool
    has_beta: bool
    norm: str
    num_groups: int | None  # of norm "group"
    eps: float
    activation: str
    negative_slope: float
    film_position: str
    gamma_offset: float
    channel_dim: int

    @property
    def batch(self) -> int:
        """N."""
        return self.input_shape[0]

    @property
    def channels(self) -> int:
        """C."""
        return self.input_shape[self.channel_dim]

    @property
    def spatial(self) -> tuple[int, ...]:
        """The sizes beside N and C."""
        return self.input_shape[2:] if self.channel_dim == 1 else self.input_shape[1:-1]

    @property
    def positions(self) -> int:
        """The product of them."""
        return math.prod(self.spatial)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """That of the input."""
        return self.input_shape

    @property
    def tensor_shapes(self) -> tuple[tuple[int, ...], ...]:
        """What TENSORS have to be like, those that are not given too."""
        rows = (self.batch, self.channels)
        return self.input_shape, rows[1:], rows[1:], rows, rows

    @property
    def tensor_dtypes(self) -> tuple[torch.dtype, ...]:
        """What TENSORS are of."""
        return self.dtype, self.parameter_dtype, self.parameter_dtype, self.dtype, self.dtype

    @property
    def memory_format(self) -> torch.memory_format:
        """What the output is allocated in."""
        return memory_format(self.channels_last, len(self.input_shape) - 2)

    @property
    def accumulates_in(self) -> torch.dtype:
        """The dtype of statistics and sums."""
        return sums_of(self.dtype)

    @property
    def statistics_shape(self) -> tuple[int, int]:
        """What `shape_of_statistics` says."""
        return shape_of_statistics(self.norm, self.num_groups or 0, self.batch, self.channels, self.positions)

    @property
    def group_size(self) -> int:
        """How many elements are normalised together."""
        if self.norm == "group":
            return self.channels // (self.num_groups or 1) * self.positions
        return self.batch * self.positions if self.norm == "batch" else self.channels


OPTIONS = NormFilm._fields[NormFilm._fields.index("norm") :]
OPTIONS_SCHEMA = (
    "str norm, int? num_groups, float eps, str activation, float negative_slope, str film_position, "
    "float gamma_offset, int channel_dim"
)


def problem_of(kinds: Kinds, channels_last: bool, options: Sequence[Any]) -> NormFilm:
    """The record of a call with tensors of these kinds and OPTIONS as a user writes them, or a TypeError or ValueError
    that names the argument."""
    given = dict(zip(OPTIONS, options, strict=True))
    input_shape, dtype, device, _ = kinds[0]
    parameter_dtype = _parameter_dtype(kinds)
    check_kinds(TENSORS, kinds, {} if parameter_dtype == dtype else dict.fromkeys(TENSORS[1:3], parameter_dtype))
    norm = check_choice("norm", given["norm"], (*NORMS, NO_NORM))
    channel_dim = _channel_dim(given["channel_dim"], norm, input_shape)
    _check_shapes(kinds, channel_dim)
    eps = finite("eps", given["eps"])
    if eps < 0:
        raise ValueError(f"eps must be at least 0, got {given['eps']!r}")
    return NormFilm(
        input_shape=tuple(input_shape),
        dtype=dtype,
        parameter_dtype=parameter_dtype,
        device=device,
        channels_last=channels_last and channel_dim == 1,
        has_weight=kinds[1] is not None,
        has_bias=kinds[2] is not None,
        has_gamma=kinds[3] is not None,
        has_beta=kinds[4] is not None,
        norm=norm,
        num_groups=_num_groups(given["num_groups"], norm, input_shape[channel_dim]),
        eps=eps,
        activation=check_choice("activation", given["activation"], ACTIVATIONS),
        negative_slope=finite("negative_slope", given["negative_slope"]),
        film_position=check_choice("film_position", given["film_position"], FILM_POSITIONS),
        gamma_offset=finite("gamma_offset", given["gamma_offset"]),
        channel_dim=channel_dim,
    )


def _parameter_dtype(kinds: Kinds) -> torch.dtype:
    """Of weight and bias: the input's, or float32 beside an input of 16 bits, as mixed precision has it."""
    dtype = kinds[0][1]
    given = [kind[1] for kind in kinds[1:3] if kind is not None]
    mixed = dtype in (torch.bfloat16, torch.float16) and given and given[0] == torch.float32
    return torch.float32 if mixed else dtype


def _channel_dim(value: Any, norm: str, input_shape: Sequence[int]) -> int:
    rank = len(input_shape)
    if rank not in _RANKS:
        raise ValueError(
            f"input must have shape (N, C, *spatial) with up to 3 spatial dimensions, or (N, *spatial, C) for "
            f"channel_dim=-1, got {in_words(input_shape)}"
        )
    (channel_dim,) = per_dimension("channel_dim", value, 1, least=-1)
    if channel_dim == rank - 1 and channel_dim != 1:
        channel_dim = -1
    if channel_dim == -1 and norm not in (*OF_POSITIONS, NO_NORM):
        raise ValueError(
            f"channel_dim must be 1 for norm={norm!r}, got {value!r}; {', '.join(map(repr, OF_POSITIONS))} take -1"
        )
    if channel_dim not in (1, -1):
        raise ValueError(f"channel_dim must be 1 or -1, got {value!r}")
    return channel_dim


def _num_groups(value: Any, norm: str, channels: int) -> int | None:
    if norm != "group":
        if value is not None:
            raise ValueError(f"num_groups must be None for norm={norm!r}, got {value!r}")
        return None
    if value is None:
        raise ValueError("num_groups must be given for norm='group'")
    (num_groups,) = per_dimension("num_groups", value, 1, least=1)
    if channels % num_groups:
        raise ValueError(f"num_groups must divide the channels of input, {channels}, got {num_groups}")
    return num_groups


def _check_shapes(kinds: Kinds, channel_dim: int) -> None:
    """That the shapes of all the tensors fit the input's."""
    input_shape = kinds[0][0]
    channels = input_shape[channel_dim]
    if channels < 1:
        raise ValueError(f"input must have at least one channel, got {in_words(input_shape)}")
    for name, kind in zip(("weight", "bias"), kinds[1:3], strict=True):
        if kind is not None and tuple(kind[0]) != (channels,):
            raise ValueError(f"{name} must have shape (C,) = ({channels},), got {in_words(kind[0])}")
    for name, kind in zip(("gamma", "beta"), kinds[3:], strict=True):
        if kind is not None:
            check_film_shape(name, kind[0], input_shape[0], channels, len(input_shape) - 2, channel_dim)
