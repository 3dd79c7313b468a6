"""The layers that are measured, each named after the model it comes from.

Full sizes are for a GPU; on the CPU the same layers run on smaller batches or maps, so that a call of two cores takes
at most about 50 ms. Half precision is float16 on a GPU and bfloat16 on a CPU, where few machines multiply float16.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from film_kernels.problems.conv_film import ConvFilm, problem_of


@dataclass(frozen=True)
class Case:
    """One layer: convolution, activation, FiLM after it."""

    name: str
    input: tuple[int, ...]  # (N, C, *in)
    weight: tuple[int, ...]  # (K, C, *kernel)
    small: tuple[int, ...]  # the input on the CPU
    padding: int = 0
    stride: int = 1
    dilation: int = 1
    activation: str = "relu"
    half: bool = False
    both_layouts: bool = False  # whether its users meet channels_last too: networks on pictures do

    def dtype(self, device: torch.device) -> torch.dtype:
        """float32, or the half precision of `device`."""
        if not self.half:
            return torch.float32
        return torch.bfloat16 if device.type == "cpu" else torch.float16


CASES = (
    Case("tutorial N=1", (1, 3, 64, 64), (10, 3, 3, 3), small=(1, 3, 64, 64)),
    Case("tutorial N=32", (32, 3, 64, 64), (10, 3, 3, 3), small=(32, 3, 64, 64), both_layouts=True),
    Case("CLEVR", (64, 128, 14, 14), (128, 128, 3, 3), small=(8, 128, 14, 14), padding=1, both_layouts=True),
    Case("BabyAI", (1280, 128, 7, 7), (128, 128, 3, 3), small=(32, 128, 7, 7), padding=1),
    Case("CNAPs", (200, 64, 41, 41), (64, 64, 3, 3), small=(4, 64, 41, 41), padding=1),
    Case("ivadomed", (32, 128, 64, 64), (128, 128, 3, 3), small=(1, 128, 64, 64), padding=1, both_layouts=True),
    Case("LaSAFT", (8, 144, 128, 1024), (24, 144, 3, 3), small=(1, 144, 32, 128), padding=1, half=True),
    Case("cunet", (64, 16, 256, 64), (32, 16, 5, 5), small=(4, 16, 256, 64), padding=2, stride=2),
    Case(
        "RT-1", (6, 1536, 10, 10), (512, 1536, 1, 1), small=(6, 1536, 10, 10), activation="none", both_layouts=True
    ),
    Case("LIBERO", (32, 64, 32, 32), (64, 64, 3, 3), small=(4, 64, 32, 32), padding=1, both_layouts=True),
    Case(
        "guided-diffusion", (4, 192, 64, 64), (192, 192, 3, 3), small=(1, 192, 32, 32), padding=1, half=True,
        both_layouts=True,
    ),
    Case("PDEArena", (8, 64, 128, 128), (64, 64, 3, 3), small=(1, 64, 128, 128), padding=1, both_layouts=True),
    Case("micro-tcn", (32, 32, 65536), (32, 32, 13), small=(1, 32, 32768), dilation=10),
    Case("diffusion-policy", (64, 512, 16), (512, 512, 5), small=(8, 512, 16), padding=2),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A case in one memory format: a row of the tables."""

    case: Case
    channels_last: bool = False
    tiny: bool = False  # a few positions only, to try the suite itself

    @property
    def name(self) -> str:
        """The case's, and the memory format where it is not the usual one."""
        return self.case.name + (" channels_last" if self.channels_last else "")

    def input_shape(self, device: torch.device) -> tuple[int, ...]:
        """(N, C, *in) on `device`."""
        batch, channels, *sizes = self.case.small if device.type == "cpu" else self.case.input
        if self.tiny:
            batch, sizes = min(batch, 2), [min(size, _TINY_SIZE[len(sizes)]) for size in sizes]
        return (batch, channels, *sizes)

    def problem(self, device: torch.device) -> ConvFilm:
        """The record of the call that a backend is asked about, with bias, gamma and beta."""
        case, shape, channels = self.case, self.input_shape(device), self.case.weight[0]
        sizes = (shape, case.weight, (channels,), (shape[0], channels), (shape[0], channels))
        input, weight, bias, gamma, beta = (
            (torch.Size(size), case.dtype(device), device, torch.strided) for size in sizes
        )
        options = (case.stride, case.padding, case.dilation, 1, case.activation, 0.01, "post", 0.0)
        return problem_of((input, weight, bias, gamma, beta), self.channels_last, options)


_TINY_SIZE = {1: 192, 2: 16}  # positions along each of one or two dimensions; dilated kernels need many
ROWS = {row.name: row for case in CASES for row in (Row(case), *([Row(case, True)] if case.both_layouts else []))}

# So little to compute that a call costs what Python and the dispatcher cost.
TINY = Row(Case("launch overhead", (1, 4, 4, 4), (8, 4, 1, 1), small=(1, 4, 4, 4)))
