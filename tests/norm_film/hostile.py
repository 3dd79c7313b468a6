"""Calls of norm_film's operators that are spoiled in some way, the registered ones and those of a compiled library.

As a program it ends with a message only where none of them ended the process:
`python -m tests.norm_film.hostile SEED COUNT BACKEND`, where the backend is cpu, or cuda in the emulator.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import torch
from torch import Tensor

import film_kernels
from tests.helpers.packed_calls import PACKED, packed_call
from tests.helpers.spoiling import (
    ABSURD,
    ABSURD_NUMBERS,
    answers,
    be_a_process_of_little_memory,
    spoil_tensor,
    spoilt_list,
)

film_kernels.available_backends()  # which registers the operators too

NORMS = ("group", "batch", "channel", "rms", "l2", "none")
TENSORS = ("input", "weight", "bias", "gamma", "beta", "grad", "kept", "statistics")
OF_BACKWARD = ("grad", "kept", "statistics")


def right_calls(
    shape: tuple[int, ...],
    norm: str = "group",
    groups: int = 2,
    channel_dim: int = 1,
    activation: int = 3,
    position: int = 1,
    dtype: torch.dtype = torch.float32,
    parameter_dtype: torch.dtype | None = None,
    channels_last: bool = False,
    backend: str = "cpu",
    library: str = "cpu",
) -> dict[str, tuple[Any, dict[str, Any]]]:
    """An operator and the arguments of a right call of it, by the operator's name."""
    n, c = shape[0], shape[channel_dim]
    draw = lambda shape, dtype=dtype: torch.randn(shape).to(dtype)  # noqa: E731
    x, grad = draw(shape), draw(shape)
    if channels_last:
        x, grad = (t.movedim(1, -1).contiguous().movedim(-1, 1) for t in (x, grad))
    of_parameters = parameter_dtype or dtype
    tensors = {
        "input": x, "weight": draw(c, of_parameters), "bias": draw(c, of_parameters), "gamma": draw((n, c)),
        "beta": draw((n, c)),
    }  # fmt: skip
    positions = x.numel() // max(n * c, 1)
    count = {"group": n * groups, "batch": c, "none": 0}.get(norm, n * positions)
    rows = 0 if norm == "none" else 1 if norm in ("rms", "l2") else 2
    kept = torch.rand(rows, count, dtype=torch.float64 if dtype == torch.float64 else torch.float32) + 0.5
    lib, named = getattr(torch.ops, f"film_kernels_{library}"), torch.ops.film_kernels
    codes = {"geometry": [NORMS.index(norm), groups, channel_dim, activation, position], "numbers": [1e-5, 0.1, 1.0]}
    names = list(film_kernels.activations.ACTIVATIONS)
    options = {
        "norm": norm, "num_groups": groups if norm == "group" else None, "eps": 1e-5, "activation": names[activation],
        "negative_slope": 0.1, "film_position": ("post", "pre")[position], "gamma_offset": 1.0,
        "channel_dim": channel_dim, "backend": backend,
    }  # fmt: skip
    wanted = {f"{name}_wanted": True for name in tensors}
    last = {"channels_last": channels_last}
    made = {
        "norm_forward": (lib.norm_forward, {**tensors, **codes, **last}),
        "norm_backward": (lib.norm_backward, {"grad": grad, "statistics": kept, **tensors, **wanted, **codes, **last}),
        "norm_film": (named.norm_film, {**tensors, **options, "keep": True, **last}),
        "norm_film_backward": (
            named.norm_film_backward, {"grad": grad, "kept": kept, **tensors, **options, "wanted": [True] * 5, **last},
        ),
    }  # fmt: skip
    if library == "cpu":  # which copies what backward reads, and gives gradients of gamma and beta in any shape
        copies = {"copy_bias": True, "copy_beta": True}
        made["norm_forward_and_copy"] = (lib.norm_forward_and_copy, {**tensors, **codes, **last, **copies})
        made["norm_backward"][1].update(gamma_size=[n, c, 1, 1], beta_size=[n, 1, c])
    return made


def _drawn(r: random.Random, library: str) -> dict[str, tuple[Any, dict[str, Any]]]:
    norm, groups = r.choice(NORMS), r.choice([1, 2, 3])
    spatial = [r.choice([1, 2, 5, 17]) for _ in range(r.choice([0, 1, 2, 2, 3]))]
    n, c = r.choice([0, 1, 2, 3]), groups * r.choice([1, 2, 7])
    dim = -1 if norm not in ("group", "batch") and r.random() < 0.3 else 1
    dtype = r.choice([torch.float32, torch.float64, torch.bfloat16, torch.float16])
    mixed = torch.float32 if dtype in (torch.bfloat16, torch.float16) and r.random() < 0.5 else None
    activation = r.randrange(len(film_kernels.activations.ACTIVATIONS))
    return right_calls(
        (n, c, *spatial) if dim == 1 else (n, *spatial, c), norm, groups, dim, activation, r.randrange(2), dtype,
        mixed, len(spatial) > 1 and dim == 1 and r.random() < 0.5, r.choice(["", library, "vendor", "reference"]),
        library,
    )  # fmt: skip


def _spoil(arguments: dict[str, Any], name: str, r: random.Random) -> None:
    value = arguments[name]
    if name in TENSORS:
        if isinstance(value, Tensor):
            spoil_tensor(arguments, name, r)
    elif isinstance(value, list):
        absurd = ABSURD_NUMBERS if name == "numbers" else (True, False) if name == "wanted" else ABSURD
        arguments[name] = spoilt_list(value, absurd, r)
    elif isinstance(value, bool):
        arguments[name] = not value
    elif isinstance(value, str):
        arguments[name] = r.choice(["", "relu", "post", "l2", "none", "batch", "vendor", "x" * 1000, "\0"])
    elif isinstance(value, float):
        arguments[name] = r.choice(ABSURD_NUMBERS)
    else:
        arguments[name] = r.choice([None, *ABSURD])


def _has_its_memory(t: Any) -> bool:
    if not isinstance(t, Tensor) or t.layout is not torch.strided or t.is_meta or t.is_nested or t.numel() == 0:
        return True
    last = t.storage_offset() + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return (last + 1) * t.element_size() <= t.untyped_storage().nbytes()


def hostile_calls(seed: int, count: int, library: str) -> tuple[int, int]:
    """How many of `count` drawn calls gave a result, and how many raised."""
    r = random.Random(seed)
    torch.manual_seed(seed)
    answered = raised = 0
    for _ in range(count):
        made = _drawn(r, library)
        called = r.choice(list(made))
        operator, arguments = made[called]
        for name in r.sample(list(arguments), r.choice([0, 1, 1, 1, 2, 3])):
            _spoil(arguments, name, r)
        if library == "cpu" and called in PACKED and r.random() < 0.5:
            operator, arguments = getattr(torch.ops.film_kernels_cpu, PACKED[called]), packed_call(arguments)
            if r.random() < 0.1:
                spoil_tensor(arguments, "options", r)
        if arguments.get("backend", library) != library and not all(map(_has_its_memory, arguments.values())):
            continue  # PyTorch's own operators read memory that was given back
        if answers(operator, arguments):
            answered += 1
        else:
            raised += 1
    return answered, raised


def main() -> None:
    be_a_process_of_little_memory()
    answered, raised = hostile_calls(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    print(f"{answered} answered, {raised} raised")


if __name__ == "__main__":
    main()
