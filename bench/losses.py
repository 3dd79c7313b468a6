"""Where the automatic choice of a backend was not the fastest, and what would have been faster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .peers import AUTOMATIC, PLAIN
from .tables import table

MOST = 1.1  # times the fastest's time; what is less may be noise


@dataclass(frozen=True)
class Comparison:
    """Median seconds of plain PyTorch, of the automatic choice and of the backends that could have served instead, in
    one row; `chosen` is the name of the backend that the choice took."""

    seconds: Mapping[str, float]
    chosen: str

    @property
    def ratio(self) -> float:
        """Plain PyTorch's time / the automatic choice's."""
        return self.seconds[PLAIN.name] / self.seconds[AUTOMATIC.name]

    @property
    def fastest(self) -> str:
        """The name of whoever was faster than all others, the automatic choice included."""
        return min(self.seconds, key=self.seconds.__getitem__)

    @property
    def loss(self) -> float:
        """The automatic choice's time / the fastest's: 1 where nothing was faster."""
        return self.seconds[AUTOMATIC.name] / self.seconds[self.fastest]


def losses(found: Iterable[tuple[str, str, Comparison]]) -> str:
    """A table, in Markdown, of the rows (name, kind, times) in which the choice took more than MOST times as long as
    the fastest, the worst first; or a sentence where there is none."""
    lost = sorted((one for one in found if one[2].loss > MOST), key=lambda one: -one[2].loss)
    if not lost:
        return f"Nothing was faster than the automatic choice by more than {MOST - 1:.0%} in any layer."
    body = [
        [f"{name}, {kind}", one.chosen, f"{one.seconds[AUTOMATIC.name] * 1e3:.3g}", one.fastest,
         f"{one.seconds[one.fastest] * 1e3:.3g}", f"{one.loss:.2f}"]
        for name, kind, one in lost
    ]  # fmt: skip
    header = ["layer", "chosen", "its time, ms", "faster", "its time, ms", "chosen / faster"]
    return f"The automatic choice lost by more than {MOST - 1:.0%} here:\n\n{table(header, body)}"
