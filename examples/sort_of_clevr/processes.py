"""The processes that train together: one, or those that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from examples.process_group import process_group

from .errors import UserError


@dataclass(frozen=True)
class Processes:
    """This process's number among `count`, and its device. The first one, number 0, does all that is written."""

    number: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.number == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, in place."""
        if self.count > 1:
            dist.all_reduce(values)
            values /= self.count
        return values


@contextmanager
def processes() -> Iterator[Processes]:
    """The process group, gloo on CPUs and NCCL on GPUs, for as long as the block runs; without torchrun, one.

    Raises UserError where the environment variables are not such as torchrun sets."""
    number, count, local = _number("RANK", 0), _number("WORLD_SIZE", 1), _number("LOCAL_RANK", 0)
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    together = "WORLD_SIZE" in os.environ
    with process_group("nccl" if device.type == "cuda" else "gloo") if together else nullcontext():
        yield Processes(number, count, device)


def _number(name: str, fallback: int) -> int:
    text = os.environ.get(name, str(fallback))
    if not text.isdecimal():
        raise UserError(f"{name}={text!r} in the environment is not a number, as torchrun sets it")
    return int(text)
