"""What is worked out once for a record that never changes, and found again by its identity: to hash all that a record
says takes longer than most of what would be looked up."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

Made = TypeVar("Made", covariant=True)
_MOST = 4096


class ByIdentity(Protocol[Made]):
    """What `by_identity` makes of a function."""

    def __call__(self, record: Any, *more: Any) -> Made: ...

    def cache_clear(self) -> None:
        """Forget all."""


def by_identity(function: Callable[..., Made]) -> ByIdentity[Made]:
    """`function(record, *more)`, remembered for equal arguments, and looked for by the identity of `record` first.
    The record is kept, so that nothing else gets its identity."""
    by_value = functools.lru_cache(maxsize=_MOST)(function)
    found: dict[Any, tuple[Any, Made]] = {}

    @functools.wraps(function)
    def asked(record: Any, *more: Any) -> Made:
        key = (id(record), *more)
        entry = found.get(key)
        if entry is None or entry[0] is not record:
            if len(found) >= _MOST:
                found.clear()
            entry = found[key] = (record, by_value(record, *more))
        return entry[1]

    def cache_clear() -> None:
        by_value.cache_clear()
        found.clear()

    asked.cache_clear = cache_clear  # type: ignore[attr-defined]
    return asked  # type: ignore[return-value]
