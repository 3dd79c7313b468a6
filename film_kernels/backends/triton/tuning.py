"""Entries (tile sizes, warps, stages), and the rule that orders them for a problem from its sizes alone."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from ...problems.conv_film import ConvFilm
from .launch import Sizes, cdiv, gpu, multiprocessors, next_power_of_2, position_blocks, precision, sizes_of

KERNELS = ("forward", "recompute", "grad_input", "grad_weight")
_PROGRAMS = 256  # grad_weight's tile is small enough for so many programs, on any GPU, where one is


class Entry(NamedTuple):
    """How a kernel is cut: tile sizes in the kernel's own terms, and how it is compiled.

    `positions`, `channels` and `products` are the output positions, output channels and summed products of a tile;
    for grad_input the input positions, input channels and summed output channels; grad_weight sums over `positions`.
    `flat` numbers products through the kernel taps, for inputs of few channels.
    """

    name: str
    positions: int
    channels: int
    products: int
    num_warps: int
    num_stages: int
    flat: bool = False

    @property
    def launch(self) -> tuple[int, int]:
        """(num_warps, num_stages)."""
        return self.num_warps, self.num_stages


# (name, positions, channels, products, num_stages), the largest tile first; `_fit` cuts them down to the Problem.
_CONVOLVE = (
    ("wide", 128, 128, 64, 3),
    ("middle", 128, 64, 64, 3),
    ("small", 64, 64, 64, 3),
    ("tiny", 64, 32, 64, 3),  # 64 rows still: fewer, and Hopper's and Blackwell's matrix units are left out
)
_CONVOLVE_FLAT = (
    ("few", 128, 128, 32, 2),
    ("few_small", 64, 64, 32, 2),
)
_SUM_POSITIONS = (
    ("wide", 64, 128, 64, 3),
    ("small", 64, 64, 64, 3),
)
_SUM_POSITIONS_FLAT = (
    ("few", 64, 64, 32, 2),
    ("few_small", 32, 64, 32, 2),
)
_FEW_CHANNELS = 16  # below, a tile of one kernel tap would be mostly empty


def entries(problem: ConvFilm, kernel: str) -> tuple[Entry, ...]:
    """What may serve `problem` in `kernel`, one of KERNELS; the rule's own choice comes first."""
    return _entries(problem, kernel, precision(problem), gpu(problem.device), multiprocessors(problem.device))


@functools.lru_cache(maxsize=4096)
def _entries(problem: ConvFilm, kernel: str, how: str, on: str, units: int) -> tuple[Entry, ...]:
    sizes = sizes_of(problem)
    flat = sizes.C < _FEW_CHANNELS and kernel != "grad_input"
    if kernel == "grad_weight":
        table = _SUM_POSITIONS_FLAT if flat else _SUM_POSITIONS
    else:
        table = _CONVOLVE_FLAT if flat else _CONVOLVE
    fitted: list[Entry] = []
    for row in table:
        is_float32 = problem.dtype == torch.float32
        entry = _fit(*row, flat, sizes, kernel, problem.channels_last, is_float32, how == "ieee", on)
        if all(entry[1:] != other[1:] for other in fitted):
            fitted.append(entry)
    # three quarters of the multiprocessors at work on larger tiles are as good as all of them on smaller ones
    least = _PROGRAMS if kernel == "grad_weight" else units * 3 // 4
    first = next((entry for entry in fitted if _programs(entry, sizes, kernel) >= least), fitted[-1])
    return (first, *(entry for entry in fitted if entry != first))


def _fit(
    name: str, positions: int, channels: int, products: int, num_stages: int, flat: bool,
    sizes: Sizes, kernel: str, channels_last: bool, is_float32: bool, ieee: bool, on: str,
) -> Entry:  # fmt: skip
    """The entry with no axis much longer than the Problem's, within registers (no kernel may spill: see report.py)
    and shared memory."""
    sums = kernel == "grad_weight"  # which has two tiles of sums
    fma = is_float32 and ieee and on != "cdna"  # no tensor cores for these
    if is_float32:
        positions, products = (min(positions, 32), products) if sums else (positions, min(products, 32))
        if ieee:
            positions, channels, products = min(positions, 64), min(channels, 64), min(products, 16 if fma else 32)
    if fma:
        num_stages = 2
        # Blackwell's matrix unit takes 64 rows or more, and Triton gives it float32 products as tf32, asked for exact
        # ones, where an operand was worked out with smaller types, as u is with the bits.
        if kernel == "grad_input":
            positions, channels = 32, channels if channels_last else min(channels, 32)
        if sums:
            channels = min(channels, 32)
    if sums and not channels_last:  # whose loads are of single elements, with as many addresses in registers
        positions = min(positions, 32)
    if kernel == "recompute":  # whose tiles lie in one sample, and which has a tile of the gradient beside its own
        positions = min(positions, max(16, next_power_of_2(sizes.out_positions)))
        channels = channels if channels_last else min(channels, 64)
    if kernel == "forward" and is_float32 and not position_blocks(sizes.N, sizes.out_positions, positions)[0]:
        channels = min(channels, 64)  # gamma and beta are tiles too
    if on == "rdna":
        channels, products = min(channels, 64), min(products, 32)
        positions = min(positions, 64) if kernel == "grad_input" else positions
        if fma and not channels_last:  # loads of a step ahead would wait in registers
            num_stages = 1
    if on in ("cdna", "rdna"):
        positions, num_stages = min(positions, 32 if sums else 128), min(num_stages, 2)
    width = sizes.C if kernel == "grad_input" else sizes.K
    depth = sizes.K if kernel == "grad_input" else sizes.products if flat else sizes.C
    channels = min(channels, max(16, next_power_of_2(width)))
    products = min(products, max(16, next_power_of_2(depth)))
    if sums and not flat:  # u of a block lies in registers
        positions = min(positions, max(32, channels))

    large = sizes.N * max(sizes.C * sizes.H * sizes.W, sizes.K * sizes.out_positions) >= 2**31  # 64-bit offsets
    if large and fma and kernel == "recompute":
        channels = min(channels, 32)
    if kernel == "grad_input":  # which works its factor of the product out in registers
        tile = positions * max(channels, products)
    else:
        tile = channels * (products if sums else positions)
    if fma:
        most = 512 if sums else 2048
    elif sums:
        most = 1024 if flat else 4096
    else:
        room = on == "nvidia" and not (is_float32 or flat or large) and kernel == "forward"
        most = 8192 if room else 4096
    return Entry(name, positions, channels, products, 8 if tile > most else 4, num_stages, flat)


def _programs(entry: Entry, sizes: Sizes, kernel: str) -> int:
    if kernel == "grad_weight":  # positions can be split as well
        tiles = cdiv(sizes.K, entry.channels) * cdiv(sizes.products, entry.products)
        return tiles * sizes.N * cdiv(sizes.out_positions, entry.positions)
    if kernel == "grad_input":
        return cdiv(sizes.N * sizes.H * sizes.W, entry.positions) * cdiv(sizes.C, entry.channels)
    k_blocks = cdiv(sizes.K, entry.channels)
    if kernel == "recompute":
        return sizes.N * cdiv(sizes.out_positions, entry.positions) * k_blocks
    return cdiv(sizes.N * sizes.out_positions, entry.positions) * k_blocks
