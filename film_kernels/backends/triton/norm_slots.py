"""Groups of channels in blocks of columns that lie side by side, wherever groups begin: each has a slot of a block.

A block's first and last group may go on in its neighbours. So a group's statistics are merged over its blocks too.
"""

import triton
import triton.language as tl


@triton.jit
def slots_of(block, EACH: tl.constexpr, COLUMNS: tl.constexpr):
    """The slot of each column's group."""
    first = block * COLUMNS
    return (first + tl.arange(0, COLUMNS)) // EACH - first // EACH


@triton.jit
def columns_of_slots(block, C, EACH: tl.constexpr, COLUMNS: tl.constexpr, SLOTS: tl.constexpr):
    """(first, one past the last) column of each slot; the latter is less where a slot is of no group."""
    begin = block * COLUMNS // EACH * EACH - block * COLUMNS + tl.arange(0, SLOTS) * EACH
    return tl.maximum(begin, 0), tl.minimum(begin + EACH, tl.minimum(COLUMNS, C - block * COLUMNS))


@triton.jit
def members_of_slots(first, end, EACH: tl.constexpr, COLUMNS: tl.constexpr):
    """How many columns each slot has; 1 where it has none."""
    return min(EACH, COLUMNS) if COLUMNS % EACH == 0 or EACH % COLUMNS == 0 else tl.maximum(end - first, 1)


@triton.jit
def by_slot(
    columns, first, end, EACH: tl.constexpr, COLUMNS: tl.constexpr, SLOTS: tl.constexpr, MEMBERS: tl.constexpr
):  # fmt: skip
    """The sums over the columns of each group, which has MEMBERS in a block at most."""
    if EACH == 1:
        sums = columns
    elif SLOTS * MEMBERS == COLUMNS:  # whole groups, or one
        sums = tl.sum(tl.reshape(columns, (SLOTS, MEMBERS)), axis=1)
    else:
        place = first[:, None] + tl.arange(0, MEMBERS)[None, :]
        mask = place < end[:, None]
        found = tl.gather(columns, tl.reshape(tl.where(mask, place, 0), (SLOTS * MEMBERS,)), 0)
        sums = tl.sum(tl.where(mask, tl.reshape(found, (SLOTS, MEMBERS)), 0.0), axis=1)
    return sums


@triton.jit
def of_slot(groups, slot, EACH: tl.constexpr, SLOTS: tl.constexpr):
    """A value of each group as a row of a tile."""
    row = groups if EACH == 1 or SLOTS == 1 else tl.gather(groups, slot, 0)
    return row[None, :]


@triton.jit
def merged_moments(
    moments, first, count, all, block, blocks, groups, P, size, chunks,
    EACH: tl.constexpr, COLUMNS: tl.constexpr, SLOTS: tl.constexpr, SPAN: tl.constexpr,
    SUM: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """(mean, variance) of a block's groups, of what the chunks first <= i < first + count found, of `all` chunks.

    What each found of a group in a block is a number near its mean, what the mean has beyond it, and the squares around
    it.
    """
    row = tl.arange(0, ROWS)
    plane = all * blocks * SLOTS
    elements = tl.zeros((ROWS, SLOTS), SUM)
    total = elements
    for i in range(0, count * SPAN, ROWS):
        at, mask, here = moments_at(
            first, i + row, count, block, blocks, groups, P, size, chunks, EACH, COLUMNS, SLOTS, SPAN, SUM
        )
        mean = tl.load(moments + at, mask=mask, other=0.0).to(SUM)
        mean += tl.load(moments + plane + at, mask=mask, other=0.0).to(SUM)
        elements += here
        total += here * mean
    length = tl.maximum(tl.sum(elements, axis=0), 1.0)  # a slot may be empty
    middle = tl.sum(total, axis=0) / length
    total = tl.zeros((ROWS, SLOTS), SUM)
    for i in range(0, count * SPAN, ROWS):
        at, mask, here = moments_at(
            first, i + row, count, block, blocks, groups, P, size, chunks, EACH, COLUMNS, SLOTS, SPAN, SUM
        )
        mean = tl.load(moments + at, mask=mask, other=0.0).to(SUM)
        mean += tl.load(moments + plane + at, mask=mask, other=0.0).to(SUM)
        away = tl.where(mask, mean - middle[None, :], 0.0)
        squares = tl.load(moments + 2 * plane + at, mask=mask, other=0.0).to(SUM)
        total += squares + here * away * away
    return middle, tl.sum(total, axis=0) / length


@triton.jit
def moments_at(
    first, row, count, block, blocks, groups, P, size, chunks,
    EACH: tl.constexpr, COLUMNS: tl.constexpr, SLOTS: tl.constexpr, SPAN: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """(offsets, mask, how many elements) of what is found of a block's groups in their blocks: a row is one of the SPAN
    blocks that a group can reach into, of one of the chunks."""
    lane = tl.arange(0, SLOTS)[None, :]
    chunk = row // SPAN
    mask = (chunk < count)[:, None]
    if COLUMNS % EACH == 0:  # a block of whole groups
        place = block
        slot = lane
        mask = mask & (block * SLOTS + lane < groups)
        members = tl.full((1, 1), EACH, tl.int32)
    else:
        begin = (block * COLUMNS // EACH + lane) * EACH
        place = begin // COLUMNS + (row % SPAN)[:, None]
        slot = begin // EACH - place * COLUMNS // EACH
        members = tl.minimum(begin + EACH, (place + 1) * COLUMNS) - tl.maximum(begin, place * COLUMNS)
        mask = mask & (begin < groups * EACH) & (members > 0)
    positions = tl.minimum(size, P - chunk % chunks * size)
    here = tl.where(mask, positions[:, None].to(SUM) * members.to(SUM), 0.0)
    return ((first + chunk)[:, None] * blocks + place) * SLOTS + slot, mask, here
