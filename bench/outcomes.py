"""What comes of a peer in a row: it was timed, it refused, or it failed. The three are told apart everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Timed:
    """Its results were right, and this is how long it took."""

    times: list[float]  # seconds of each round
    about: Mapping[str, object] = field(default_factory=dict)  # what the report says besides


@dataclass(frozen=True)
class Refused:
    """It was known beforehand that it would not be timed: it does not serve this row, or there is no time for it."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """A wrong result, or an error that nothing had announced.

    `fatal`: the whole run fails for it, as for everything of this package. What fails of other people's software is
    shown as a failure, and the run goes on to be a success."""

    reason: str
    fatal: bool


Untimed = Refused | Failed
Outcome = Timed | Untimed
