"""Ways to spoil what an operator is given, for tests in which nothing that it is given may end the process."""

from __future__ import annotations

import contextlib
import os
import random
import resource
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

ABSURD = (-(2**63), -(2**40), -3, -1, 0, 1, 2, 3, 7, 1000, 2**40, 2**62, 2**63 - 1)
ABSURD_NUMBERS = (float("nan"), float("inf"), -1e308, 0.0, 3.0)


def freed(t: Tensor, left: int = 0) -> Tensor:
    """`t` with its elements' memory given back, but for some bytes."""
    t = t.clone(memory_format=torch.preserve_format)
    t.untyped_storage().resize_(left)
    return t


def _negative(t: Tensor) -> Tensor:
    return torch._neg_view(t) if t.is_floating_point() else t


SPOILERS: tuple[Callable[[Tensor, random.Random], Any], ...] = (
    lambda t, r: t.to(r.choice([torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.uint8, torch.bool])),
    lambda t, r: t.to(torch.complex64),
    lambda t, r: t.unsqueeze(r.randrange(t.dim() + 1)),
    lambda t, r: t.select(r.randrange(t.dim()), 0) if t.numel() else t,
    lambda t, r: t.flatten(),
    lambda t, r: t.transpose(0, -1),
    lambda t, r: t[: t.shape[0] // 2],
    lambda t, r: torch.cat([t, t], r.randrange(t.dim())),
    lambda t, r: t.new_empty([0] * t.dim()),
    lambda t, r: t.new_empty(r.randrange(5)),
    lambda t, r: t.new_ones(()).expand(t.shape),
    lambda t, r: t.new_ones([1] * t.dim()).expand([2 ** r.choice([20, 40, 55]), *t.shape[1:]]),
    lambda t, r: freed(t),
    lambda t, r: freed(t, r.randrange(t.numel() + 1)),
    lambda t, r: t.to("meta"),
    lambda t, r: t.to_sparse(),
    lambda t, r: t.to_mkldnn(),
    lambda t, r: _negative(t),
    lambda t, r: t.repeat_interleave(2, -1)[..., ::2],
    lambda t, r: t.as_strided(t.shape, [r.randrange(2) for _ in t.shape]),
    lambda t, r: t * float("nan") if t.is_floating_point() else t,
    lambda t, r: None,
    lambda t, r: 3,
)


def spoil_tensor(arguments: dict[str, Any], name: str, r: random.Random) -> None:
    with contextlib.suppress(RuntimeError, NotImplementedError):  # not every tensor can be spoiled in every way
        arguments[name] = r.choice(SPOILERS)(arguments[name], r)


def spoilt_list(value: list, absurd: Sequence[Any], r: random.Random) -> list:
    """With one element changed, left out or doubled."""
    at = r.randrange(len(value))
    return [*value[:at], r.choice(absurd), *value[at + r.choice([0, 1, 1, 1, 1, 2]) :]]


def answers(operator: Callable[..., Any], arguments: dict[str, Any]) -> bool:
    """Whether it gave a result, all of which is read, or raised."""
    try:
        results = operator(**arguments)
    except (RuntimeError, TypeError, ValueError, NotImplementedError, IndexError, OverflowError):
        return False
    for t in results if isinstance(results, tuple | list) else (results,):
        if t is not None and not t.is_meta:
            t.sum().item()
    return True


def be_a_process_of_little_memory() -> None:
    if "FILM_KERNELS_SANITIZED" not in os.environ:  # a sanitizer takes terabytes of addresses for itself
        resource.setrlimit(resource.RLIMIT_AS, (2**35, 2**35))
    torch.set_num_threads(2)
