"""Whether data from a file has the form that it should have."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def difference(found: Any, like: Any, name: str) -> str | None:
    """Where `found`, called `name`, has not the form of `like`, or None: types, keys, lengths, shapes and dtypes."""
    if type(found) is not type(like):
        return f"{name} is a {type(found).__name__} and not a {type(like).__name__}"
    if isinstance(like, Tensor):
        if (found.layout, found.dtype, found.shape) != (like.layout, like.dtype, like.shape):
            return f"{name} is {found.dtype} of shape {tuple(found.shape)} and not {like.dtype} of {tuple(like.shape)}"
        return None
    if isinstance(like, dict):
        if found.keys() != like.keys():
            return f"{name} has other entries than {', '.join(map(str, like))}"
        return _first(difference(found[key], like[key], f"{name}, {key}") for key in like)
    if isinstance(like, (list, tuple)):
        if len(found) != len(like):
            return f"{name} has {len(found)} entries and not {len(like)}"
        pairs = enumerate(zip(found, like, strict=True))
        return _first(difference(one, other, f"{name}, {place}") for place, (one, other) in pairs)
    return None


def is_list_of(value: Any, kind: type) -> bool:
    """Whether `value` is a list whose entries are all of the type `kind`."""
    return type(value) is list and all(type(entry) is kind for entry in value)


def _first(found: Any) -> str | None:
    return next((entry for entry in found if entry is not None), None)
