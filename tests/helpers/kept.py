"""What autograd keeps between forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def kept_bytes(call: Callable[[], Tensor], known: Iterable[Tensor | None]) -> tuple[int, Tensor]:
    """Bytes of the tensors that autograd saves in `call`, apart from the storages of `known`; and its result."""
    ours = {t.untyped_storage().data_ptr() for t in known if t is not None}
    sizes = {}

    def pack(t):
        if t.untyped_storage().data_ptr() not in ours:
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = call()
    return sum(sizes.values()), y
