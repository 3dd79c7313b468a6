"""Few rows of options instead of all combinations, which would be many thousands."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any


def pairs(choices: Mapping[str, Sequence[Any]], allowed: Callable[[dict[str, Any]], bool]) -> Iterator[dict[str, Any]]:
    """Rows of one choice for each name, such that every two choices that go together stand in a row."""
    generator = random.Random(0)
    names = list(choices)
    left = {
        ((one, i), (other, j)): None
        for at, one in enumerate(names)
        for other in names[at + 1 :]
        for i in range(len(choices[one]))
        for j in range(len(choices[other]))
    }
    while left:
        wanted = next(iter(left))
        best: tuple[int, dict[str, int]] | None = None
        for _ in range(40):
            row = {name: generator.randrange(len(choices[name])) for name in names} | dict(wanted)
            if allowed({name: choices[name][at] for name, at in row.items()}):
                new = sum(((one, row[one]), (other, row[other])) in left for one, other in _twos(names))
                best = max(best or (0, row), (new, row), key=lambda found: found[0])
        if best is None:  # they do not go together
            del left[wanted]
            continue
        for one, other in _twos(names):
            left.pop(((one, best[1][one]), (other, best[1][other])), None)
        yield {name: choices[name][at] for name, at in best[1].items()}


def _twos(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    return ((one, other) for at, one in enumerate(names) for other in names[at + 1 :])
