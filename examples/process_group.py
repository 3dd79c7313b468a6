"""A process group that ends with its block."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist


@contextmanager
def process_group(backend: str, **options: Any) -> Iterator[None]:
    """The default process group for as long as the block runs; `options` are `init_process_group`'s.

    Its threads end with it, so that none is left to call into an interpreter that has ended, which aborts a process.
    Only what DTensors leave in PyTorch's own caches keeps them alive: a process that uses those ends by `os._exit`.
    """
    # The functions of this module keep the group of the moment when it is imported as a default argument, and
    # DistributedDataParallel imports it: imported once the group is there, it would keep the group's threads alive.
    importlib.import_module("torch.distributed.nn")
    dist.init_process_group(backend, **options)
    try:
        yield
    finally:
        dist.destroy_process_group()
