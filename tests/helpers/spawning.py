"""Processes that work together in one gloo group on this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from examples.process_group import process_group


def run_together(work: Callable[..., None], count: int, folder: Path, *arguments: Any) -> None:
    """`work(rank, *arguments)` in `count` new processes of one thread each, which meet in `folder`, an empty one.

    They meet in a file, which no other process on this machine can be using, as it can a port. Raises what
    `torch.multiprocessing.spawn` raises where one of them fails."""
    torch.multiprocessing.spawn(_member, (work, count, str(folder), arguments), nprocs=count)


def _member(rank: int, work: Callable[..., None], count: int, folder: str, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    with process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count):
        work(rank, *arguments)
        dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    # PyTorch's caches of DTensors keep a mesh, and with it the group's threads. One that lets go of a tensor while the
    # interpreter shuts down would abort the process, so the interpreter is not shut down.
    os._exit(0)
