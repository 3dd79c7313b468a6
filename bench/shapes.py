"""The layers that are measured, each named after the model it comes from.

Full sizes are for a GPU; on the CPU the same layers run on smaller batches or maps, so that a call of two cores takes
at most about 50 ms.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from film_kernels.problems import Problem

from .case import BOTH, HALF, Case
from .conv_case import ConvCase
from .norm_case import NormCase

CONV_CASES = (
    ConvCase("tutorial N=1", (1, 3, 64, 64), (10, 3, 3, 3), small=(1, 3, 64, 64)),
    ConvCase("tutorial N=32", (32, 3, 64, 64), (10, 3, 3, 3), small=(32, 3, 64, 64), both_layouts=True),
    ConvCase("CLEVR", (64, 128, 14, 14), (128, 128, 3, 3), small=(8, 128, 14, 14), padding=1, both_layouts=True),
    ConvCase("BabyAI", (1280, 128, 7, 7), (128, 128, 3, 3), small=(32, 128, 7, 7), padding=1),
    ConvCase("CNAPs", (200, 64, 41, 41), (64, 64, 3, 3), small=(4, 64, 41, 41), padding=1),
    ConvCase("ivadomed", (32, 128, 64, 64), (128, 128, 3, 3), small=(1, 128, 64, 64), padding=1, both_layouts=True),
    ConvCase("LaSAFT", (8, 144, 128, 1024), (24, 144, 3, 3), small=(1, 144, 32, 128), padding=1, in_half=HALF),
    ConvCase("cunet", (64, 16, 256, 64), (32, 16, 5, 5), small=(4, 16, 256, 64), padding=2, stride=2),
    ConvCase(
        "RT-1", (6, 1536, 10, 10), (512, 1536, 1, 1), small=(6, 1536, 10, 10), activation="none", both_layouts=True
    ),
    ConvCase("LIBERO", (32, 64, 32, 32), (64, 64, 3, 3), small=(4, 64, 32, 32), padding=1, both_layouts=True),
    ConvCase(
        "guided-diffusion", (4, 192, 64, 64), (192, 192, 3, 3), small=(1, 192, 32, 32), padding=1, in_half=HALF,
        both_layouts=True,
    ),
    ConvCase("PDEArena", (8, 64, 128, 128), (64, 64, 3, 3), small=(1, 64, 128, 128), padding=1, both_layouts=True),
    ConvCase("micro-tcn", (32, 32, 65536), (32, 32, 13), small=(1, 32, 32768), dilation=10),
    ConvCase("diffusion-policy", (64, 512, 16), (512, 512, 5), small=(8, 512, 16), padding=2),
)  # fmt: skip


def _norm(name: str, norm: str, small: tuple[int, ...], **options) -> NormCase:
    """In both precisions; on a GPU with eight times as many samples."""
    return NormCase(name, (8 * small[0], *small[1:]), norm, small=small, in_half=BOTH, **options)


def _picture(name: str, norm: str, small: tuple[int, ...], activation: str = "silu", **options) -> NormCase:
    return _norm(name, norm, small, activation=activation, both_layouts=True, **options)


NORM_CASES = (
    _picture("GroupNorm, guided-diffusion", "group", (4, 192, 64, 64), num_groups=32),
    _picture("GroupNorm, DDPM", "group", (8, 128, 16, 16), num_groups=32),
    _picture("GroupNorm, SR3", "group", (2, 64, 128, 128), num_groups=32),
    _picture("GroupNorm, U-Net's middle", "group", (8, 512, 8, 8), num_groups=32),
    _picture("GroupNorm, latent diffusion", "group", (1, 320, 64, 64), num_groups=32),
    _norm(
        "GroupNorm, diffusion-policy", "group", (64, 512, 16), num_groups=8, activation="mish", film_position="post"
    ),
    _picture("InstanceNorm, style transfer", "instance", (2, 64, 128, 128), "relu"),
    _picture("RMSNorm, pixel diffusion", "rms", (4, 64, 64, 64)),
    _picture("F.normalize, pixel diffusion", "l2", (4, 256, 16, 16)),
    _norm("LayerNorm, DiT", "channel", (4, 1024, 768), activation="none", channel_dim=-1),
    _picture("BatchNorm, ResNet", "batch", (32, 128, 28, 28), "relu"),
    _picture("GroupNorm without FiLM", "group", (4, 192, 64, 64), num_groups=32, film=False),
)  # fmt: skip

CASES: tuple[Case, ...] = (*CONV_CASES, *NORM_CASES)
OPERATORS = tuple(dict.fromkeys(case.operator for case in CASES))


@dataclass(frozen=True)
class Row:
    """A case in one memory format and precision: a row of the tables."""

    case: Case
    channels_last: bool = False
    half: bool = False  # bfloat16, which CPUs multiply too
    float16: bool = False  # rather than bfloat16
    only_gpu: bool = False  # not measured on a CPU
    tiny: bool = False  # a few positions only, to try the suite itself

    @property
    def name(self) -> str:
        """The case's, the memory format where it is not the usual one, and the precision where there are two."""
        words = [
            self.case.name,
            "channels_last" * self.channels_last,
            "half" * (self.half and not self.float16 and (self.only_gpu or len(self.case.in_half) > 1)),
            "float16" * self.float16,
        ]
        return " ".join(word for word in words if word)

    def input_shape(self, device: torch.device) -> tuple[int, ...]:
        """(N, C, *in), or (N, *in, C) where the channels are last, on `device`."""
        shape = list(self.case.small if device.type == "cpu" else self.case.input)
        if self.tiny:
            shape[0] = min(shape[0], 2)
            for place in set(range(1, len(shape))) - {self.case.channel_dim % len(shape)}:
                shape[place] = min(shape[place], _TINY_SIZE[len(shape) - 2])
        return tuple(shape)

    @property
    def dtype(self) -> torch.dtype:
        """Of all tensors."""
        if not self.half:
            return torch.float32
        return torch.float16 if self.float16 else torch.bfloat16

    def problem(self, device: torch.device) -> Problem:
        """The record of the call that a backend is asked about."""
        kinds = [
            None if shape is None else (torch.Size(shape), self.dtype, device, torch.strided)
            for shape in self.case.shapes(self.input_shape(device))
        ]
        return self.case.problem(kinds, self.channels_last)


_TINY_SIZE = {1: 192, 2: 16}  # positions along each of one or two dimensions; dilated kernels need many


_IN_FLOAT16 = ("tutorial N=32", "CLEVR", "guided-diffusion", "GroupNorm, DDPM", "RMSNorm, pixel diffusion")


def _rows(case: Case) -> Iterator[Row]:
    for half in case.in_half:
        yield Row(case, half=half)
        if case.both_layouts:
            yield Row(case, channels_last=True, half=half)
    # On a GPU networks train in 16 bits, pictures in channels_last; which of the two makes little difference to it.
    layout = len(case.input) == 4 and case.channel_dim == 1
    if True not in case.in_half:
        yield Row(case, channels_last=layout, half=True, only_gpu=True)
    if case.name in _IN_FLOAT16:
        yield Row(case, channels_last=layout, half=True, float16=True, only_gpu=True)


ROWS = {row.name: row for case in CASES for row in _rows(case)}

# So little to compute that a call costs what Python and the dispatcher cost, by operator.
TINY = {
    case.operator: Row(case)
    for case in (
        ConvCase("launch overhead", (1, 4, 4, 4), (8, 4, 1, 1), small=(1, 4, 4, 4)),
        NormCase("norm's launch overhead", (1, 8, 4, 4), "group", num_groups=2, small=(1, 8, 4, 4), activation="silu"),
    )
}
