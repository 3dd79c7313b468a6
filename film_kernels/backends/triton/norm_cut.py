"""How a call of norm_film is cut into tiles, and the numbers that its kernels take."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ...problems.norm_film import OF_POSITIONS, NormFilm
from . import launch as host
from .norm_tuning import NormEntry

_TILES = 16  # of a chunk at most: the mean of its first is still near that of all
_PROGRAMS = 4  # for each multiprocessor, from which on chunks get longer
_WIDEST = 128  # columns where they are fastest
_VECTOR = 8  # elements that are loaded together where every row of memory begins at a multiple of them
_SIDE_BY_SIDE = 64  # bytes of a line of a tile, at least: memory gives no fewer at once


class Cut(NamedTuple):
    """What a program has: whole groups of one sample, as norm_tiles.py has them, or some positions, of all channels or
    of a block of them."""

    sizes: dict[str, int]
    tile: dict[str, object]
    programs: int
    num_warps: int


@functools.lru_cache(maxsize=4096)
def groups_cut_of(problem: NormFilm, entry: NormEntry) -> Cut:
    """Programs have some groups of one sample, or slabs of one, whatever the positions."""
    groups, columns = groups_of(problem), _columns(problem, entry.tile)
    each = problem.channels // groups
    members = min(host.next_power_of_2(each), columns)
    at_once = min(columns // members, host.next_power_of_2(groups)) if members >= each else 1
    blocks = host.cdiv(groups, at_once)
    return Cut(
        sizes={
            "N": problem.batch, "groups": groups, "each": each, "group_blocks": blocks,
            "slabs": host.cdiv(each, members),
        },
        tile={"WHOLE": each == members, "GROUPS": at_once, "MEMBERS": members, "WIDE": is_wide(problem)},
        programs=blocks * (1 if problem.norm == "batch" else problem.batch),
        num_warps=4,
    )  # fmt: skip


@functools.lru_cache(maxsize=4096)
def channels_cut_of(problem: NormFilm, entry: NormEntry) -> Cut:
    """Programs have chunks of positions of some channels of one sample, which lie side by side whatever the groups."""
    groups, positions, columns = groups_of(problem), problem.positions, _columns(problem, entry.tile)
    rows = min(entry.tile // columns, host.next_power_of_2(positions))
    blocks, tiles = host.cdiv(problem.channels, columns), host.cdiv(positions, rows)
    lines = problem.batch * blocks
    size = rows * max(1, min(_TILES, tiles, tiles * lines // (_PROGRAMS * host.multiprocessors(problem.device))))
    chunks = host.cdiv(positions, size)
    return Cut(
        sizes={
            "N": problem.batch, "P": positions, "C": problem.channels, "groups": groups,
            "each": problem.channels // groups, "blocks": blocks, "chunks": chunks, "size": size, **strides_of(problem),
        },
        tile={"COLUMNS": columns, "ROWS": rows, "ACC": acc_of(problem), "WIDE": is_wide(problem)},
        programs=lines * chunks,
        num_warps=warps_of(rows * columns, 256 if _is_odd(problem) else 512),
    )  # fmt: skip


@functools.lru_cache(maxsize=4096)
def held_of(problem: NormFilm, entry: NormEntry, backward: bool) -> Cut | None:
    """Of groups of channels, where a tile has all of each of its groups; None where they are too large for one."""
    if problem.norm != "group":
        return None
    groups = groups_of(problem)
    each, positions = problem.channels // groups, problem.positions
    members, rows = host.next_power_of_2(each), host.next_power_of_2(positions)
    # no more groups at once than leave work for all multiprocessors, but whole lines of memory
    few = problem.batch * groups // (_PROGRAMS * host.multiprocessors(problem.device))
    # two addresses of 64 bits for each element take registers
    tile = entry.tile // 2 if backward and _is_odd(problem) and is_wide(problem) else entry.tile
    at_once = min(tile // (members * rows), 1 << max(few, 1).bit_length() - 1)
    if _is_last(problem):
        at_once = max(at_once, _SIDE_BY_SIDE // problem.dtype.itemsize // members)
    at_once = max(1, min(at_once, host.next_power_of_2(groups)))
    elements = at_once * members * rows
    most = entry.held // 2 if backward else entry.held
    if _is_odd(problem):
        most = min(most, tile)
    if elements > most:
        return None
    blocks = host.cdiv(groups, at_once)
    return Cut(
        sizes={
            "N": problem.batch, "P": positions, "groups": groups, "each": each, "group_blocks": blocks,
            "slabs": 1, "chunks": 1, "size": rows, **strides_of(problem),
        },
        tile={
            "WHOLE": each == members, "GROUPS": at_once, "MEMBERS": members, "ROWS": rows, "ACC": acc_of(problem),
            "WIDE": is_wide(problem),
        },
        programs=problem.batch * blocks,
        num_warps=warps_of(elements, 256, 16),
    )  # fmt: skip


def once_of(problem: NormFilm, entry: NormEntry, with_sums: bool) -> Cut | None:
    """Of the backward that reads its input once; None where it has to read it again, or there is nothing to sum."""
    if problem.group_size == 1:
        return None
    if of_positions(problem):
        return once_across_of(problem, entry) if with_sums else None
    return held_of(problem, entry, backward=True)


@functools.lru_cache(maxsize=4096)
def once_across_of(problem: NormFilm, entry: NormEntry) -> Cut | None:
    """Programs have all channels of chunks of positions of one sample."""
    channels, positions = problem.channels, problem.positions
    columns = host.next_power_of_2(channels)
    if columns > entry.tile:
        return None
    few = _has_few_warps(problem)
    rows = min(_rows(problem, columns, entry.tile // (4 if few else 2)), host.next_power_of_2(positions))
    tiles = host.cdiv(positions, rows)
    size = rows * max(1, min(_TILES, tiles * problem.batch // (_PROGRAMS * host.multiprocessors(problem.device))))
    chunks = host.cdiv(positions, size)
    return Cut(
        sizes={
            "N": problem.batch, "P": positions, "C": channels, "chunks": chunks, "size": size, **strides_of(problem)
        },
        tile={"ROWS": rows, "COLUMNS": columns, "ACC": acc_of(problem), "WIDE": is_wide(problem)},
        programs=problem.batch * chunks,
        num_warps=warps_of(rows * columns, 512 if few else 256, 16),
    )  # fmt: skip


def cuts_of(problem: NormFilm, entry: NormEntry, backward: bool) -> tuple[Cut | None, ...]:
    """All that forward or backward may cut by."""
    if not backward:
        if of_positions(problem):
            return (across_of(problem, entry),)
        return (held_of(problem, entry, backward=False) or channels_cut_of(problem, entry),)
    cut = once_of(problem, entry, with_sums=True)
    if of_positions(problem):
        return cut, channels_cut_of(problem, entry), across_of(problem, entry)
    return (cut,) if cut else (channels_cut_of(problem, entry), groups_cut_of(problem, entry))


def groups_of(problem: NormFilm) -> int:
    return problem.num_groups or 1 if problem.norm == "group" else problem.channels


class Slots(NamedTuple):
    """How the groups of channels lie in blocks of columns side by side (norm_slots.py)."""

    each: int  # channels of a group
    members: int  # of these in a block, a power of two that is enough
    slots: int  # groups of a block, at most
    span: int  # blocks of a group, at most


def slots_in(problem: NormFilm, entry: NormEntry) -> Slots:
    """Of the blocks of `channels_cut_of`."""
    each, columns = problem.channels // groups_of(problem), _columns(problem, entry.tile)
    members = host.next_power_of_2(min(each, columns))
    slots = 1 if each % columns == 0 else columns // each if columns % each == 0 else (each + columns - 2) // each + 1
    span = 1 if columns % each == 0 else each // columns if each % columns == 0 else (each + columns - 2) // columns + 1
    return Slots(each, members, host.next_power_of_2(slots), span)


@functools.lru_cache(maxsize=4096)
def across_of(problem: NormFilm, entry: NormEntry) -> Cut:
    channels, positions = problem.channels, problem.positions
    columns = min(host.next_power_of_2(channels), entry.tile)
    few = _has_few_warps(problem) and columns >= channels
    rows = min(
        _rows(problem, columns, entry.tile // (2 if few else 1)), host.next_power_of_2(problem.batch * positions)
    )
    one_sample, blocks = host.position_blocks(problem.batch, positions, rows)
    return Cut(
        sizes={"N": problem.batch, "P": positions, "C": channels, **strides_of(problem)},
        tile={
            "ROWS": rows, "COLUMNS": columns, "SINGLE": columns >= channels, "ONE_SAMPLE": one_sample,
            "ACC": acc_of(problem), "WIDE": is_wide(problem),
        },
        programs=blocks,
        num_warps=warps_of(rows * columns, 1024 if few else 512, 16),
    )  # fmt: skip


def _columns(problem: NormFilm, tile: int) -> int:
    """How many columns a tile may have: as many as lie side by side, or those that rows leave empty."""
    if _is_last(problem):
        return min(_WIDEST, host.next_power_of_2(problem.channels))
    return max(1, min(tile, tile // host.next_power_of_2(problem.positions), host.next_power_of_2(problem.channels)))


def _rows(problem: NormFilm, columns: int, tile: int) -> int:
    """How many rows a tile of all channels may have: where they are fastest, as many as lie side by side."""
    least = 1 if _is_last(problem) or _is_odd(problem) else _SIDE_BY_SIDE // problem.dtype.itemsize
    return max(1, tile // columns, min(least, 4 * tile // columns))


def _has_few_warps(problem: NormFilm) -> bool:
    """Whether a warp has whole positions where it can, and then waits for no other: on an H200 that took 0.76 to 1.0 of
    the time of twice as many warps. Of float32 they would need too many registers."""
    return problem.dtype.itemsize == 2 and not _is_odd(problem)


def warps_of(elements: int, of_warp: int = 512, most: int = 8) -> int:
    return max(1, min(most, elements // of_warp))


def _is_last(problem: NormFilm) -> bool:
    last = problem.memory_format != torch.contiguous_format
    return last or problem.channel_dim == -1 or problem.positions == 1


def _is_odd(problem: NormFilm) -> bool:
    """Whether elements are loaded one by one, with an address in registers for each."""
    return (problem.channels if _is_last(problem) else problem.positions) % _VECTOR != 0


def strides_of(problem: NormFilm) -> dict[str, int]:
    """Of the input, the output and the gradients of both."""
    channels, positions = problem.channels, problem.positions
    channel, position = (1, channels) if _is_last(problem) else (positions, 1)
    return {"x_sn": channels * positions, "x_sc": channel, "x_sp": position}


def acc_of(problem: NormFilm) -> tl.dtype:
    return tl.float64 if problem.dtype == torch.float64 else tl.float32


def sum_of(problem: NormFilm) -> tl.dtype:
    # float32 would lose digits that PyTorch's sums keep; not all of Intel's GPUs have float64
    return tl.float32 if host.gpu(problem.device) == "intel" else tl.float64


def is_wide(problem: NormFilm) -> bool:
    return problem.batch * problem.channels * problem.positions >= 2**31 - 2**16  # a tile's mask ends past the last


def arguments_of(problem: NormFilm) -> dict[str, object]:
    """The options as the kernels take them."""
    return {
        **host.options(problem), "eps": float(problem.eps), "NORM": problem.norm,
        "POST": problem.film_position == "post",
    }  # fmt: skip


def named_factors(factors: Sequence[Tensor | None]) -> dict[str, Tensor | None]:
    """weight, bias, gamma and beta as the kernels take them."""
    return dict(zip(("weight", "bias", "gamma", "beta"), factors, strict=True))


def strides_of_factors(factors: host.Layouts) -> dict[str, int]:
    """Of weight, bias, gamma and beta."""
    weight, bias, gamma, beta = factors
    one = {name: 0 if layout is None else layout.stride[0] for name, layout in (("w_sk", weight), ("b_sk", bias))}
    return {**one, **host.strides_of(gamma=gamma, beta=beta)}


def dense(problem: NormFilm, tensor: Tensor) -> Tensor:
    """In the problem's memory format, without gaps."""
    return tensor.contiguous(memory_format=problem.memory_format)


def empty_like_input(problem: NormFilm) -> Tensor:
    """What y and the input's gradient are written to."""
    return torch.empty(
        problem.input_shape, dtype=problem.dtype, device=problem.device, memory_format=problem.memory_format
    )


def of_positions(problem: NormFilm) -> bool:
    return problem.norm in OF_POSITIONS
