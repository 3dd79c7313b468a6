"""Layers drawn by lot, by operator: the same for the same seed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace

from .conv_case import ConvCase
from .norm_case import NormCase
from .shapes import Row

_MOST_PRODUCTS = 1.5e9  # of a convolution's forward; larger maps are made smaller
_MOST_ELEMENTS = 4e6  # of a norm's input; the same


def draw(operator: str, seed: int, count: int) -> list[Row]:
    """`count` rows of that operator."""
    lot = random.Random(seed)
    return [_LOTS[operator](lot) for _ in range(count)]


def _conv(lot: random.Random) -> Row:
    """1 to 12 samples, 3 to 224 input channels, square kernels of 1 to 7 taps at a stride of 1 or 2."""
    kernel, stride = lot.choice((1, 3, 3, 3, 5, 7)), lot.choice((1, 1, 1, 2))
    if kernel == 1:  # in channels_last PyTorch 2.13's own backward of these writes past its memory at a stride of 2
        stride = 1
    inputs, outputs = lot.choice((3, 12, 20, 48, 80, 112, 160, 224)), lot.choice((24, 40, 56, 96, 144, 208))
    samples, height, width = lot.choice((1, 2, 5, 12)), lot.randint(9, 70), lot.randint(9, 70)
    channels_last = lot.random() < 0.5
    while samples * height * width * inputs * outputs * (kernel / stride) ** 2 > _MOST_PRODUCTS:
        samples, height, width = max(samples // 2, 1), max(height * 2 // 3, 7), max(width * 2 // 3, 7)
    shape, weight = (samples, inputs, height, width), (outputs, inputs, kernel, kernel)
    name = f"{'x'.join(map(str, shape))} -> {outputs}, {kernel}x{kernel}" + (", stride 2" if stride == 2 else "")
    return Row(ConvCase(name, shape, weight, small=shape, padding=kernel // 2, stride=stride), channels_last)


def _norm(lot: random.Random) -> Row:
    """1 to 12 samples of 32 to 768 channels; pictures in either memory format, rows and tokens; half of them
    GroupNorm."""
    norm = lot.choice(("group", "group", "group", "group", "group", "instance", "batch", "rms", "l2", "channel"))
    activation = lot.choice(("silu", "silu", "gelu", "relu", "mish", "none"))
    position = lot.choice(("pre", "pre", "pre", "post"))
    film, groups = lot.random() < 0.8, lot.choice((8, 16, 32))
    samples, channels = lot.choice((1, 2, 5, 12)), lot.choice((32, 64, 96, 128, 192, 320, 512, 768))
    channels_last = lot.random() < 0.5
    sizes = [lot.randint(7, 130), lot.randint(7, 130)]
    if norm == "channel" or lot.random() < 0.2:
        sizes, channels_last = [sizes[0] * lot.choice((1, 8))], False
    while samples * channels * math.prod(sizes) > _MOST_ELEMENTS:
        samples, sizes = max(samples // 2, 1), [max(size * 2 // 3, 7) for size in sizes]
    tokens = norm == "channel"
    shape = (samples, *sizes, channels) if tokens else (samples, channels, *sizes)
    case = NormCase(
        "", shape, norm, small=shape, activation=activation, film_position=position, film=film,
        channel_dim=-1 if tokens else 1, num_groups=groups if norm == "group" else None,
    )  # fmt: skip
    return Row(replace(case, name=case.described(shape)), channels_last)


_LOTS: dict[str, Callable[[random.Random], Row]] = {"conv_film": _conv, "norm_film": _norm}
