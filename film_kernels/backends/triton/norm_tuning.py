"""How large the tiles of norm_film may be: the rule's choice, and what `autotune` times beside it."""

from __future__ import annotations

import functools
from typing import NamedTuple

from ...problems.norm_film import NormFilm
from .launch import gpu, multiprocessors

KERNELS = ("norm_forward", "norm_backward")  # each a few launches, which cut alike


class NormEntry(NamedTuple):
    """Tiles have `tile` elements at once, and groups of up to `held` elements are whole in one; backward, which holds
    the gradient beside the input, has half as many of these."""

    name: str
    tile: int
    held: int


# The rule's own comes first. None is larger than it: that would leave no registers. Of the others a few spill some
# bytes on some GPUs; what that costs is in their times.
_ENTRIES = (
    NormEntry("usual", 4096, 16384),
    NormEntry("small", 1024, 4096),  # more programs at work, each of fewer warps
    NormEntry("split", 1024, 0),  # groups over several programs, however short
)


def entries(problem: NormFilm, kernel: str) -> tuple[NormEntry, ...]:
    """What may serve `problem` in `kernel`, one of KERNELS; the rule's own choice comes first."""
    return _entries(problem, kernel, gpu(problem.device), multiprocessors(problem.device))


@functools.lru_cache(maxsize=4096)
def _entries(problem: NormFilm, kernel: str, on: str, units: int) -> tuple[NormEntry, ...]:
    from .norm_cut import cuts_of

    found: dict[str, NormEntry] = {}
    for entry in _ENTRIES:  # those that cut a problem alike are one
        cuts = cuts_of(problem, entry, backward=kernel == "norm_backward")
        found.setdefault(repr(cuts), entry)  # of dictionaries, which have no hash
    return tuple(found.values())
