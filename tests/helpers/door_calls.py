"""Calls of the compiled libraries' registered operators: right ones, and ones that are spoiled in some way.

As a program it makes hostile calls, and ends with a message only where none of them ended the process:
`python -m tests.helpers.door_calls NAMESPACE SEED COUNT`.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import torch
from torch import Tensor

import film_kernels
from film_kernels.activations import ACTIVATIONS
from tests.helpers.packed_calls import PACKED, packed_call
from tests.helpers.spoiling import (
    ABSURD,
    ABSURD_NUMBERS,
    answers,
    be_a_process_of_little_memory,
    spoil_tensor,
    spoilt_list,
)

assert film_kernels.available_backends()["cpu"] is None  # which registers the operators too

_TENSORS = {
    "forward": ("input", "weight", "bias", "gamma", "beta"),
    "grad_input": ("grad", "bits", "weight", "gamma"),
    "grad_weight": ("grad", "bits", "input", "weight", "bias", "gamma"),
    "forward_and_copy": ("input", "weight", "bias", "gamma", "beta"),
    "backward": ("grad", "bits", "input", "weight", "bias", "gamma"),
}
OPERATORS = tuple(_TENSORS)
OF_EVERY_LIBRARY = OPERATORS[:3]  # the others are the CPU library's


def sizes_of_output(input, kernel, stride, dilation, padding) -> list[int]:
    return [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, d, p in zip(input, kernel, stride, dilation, padding, strict=True)
    ]


def calls(
    input: tuple[int, ...],
    weight: tuple[int, ...],
    *,
    stride: tuple[int, ...] = (1, 1),
    dilation: tuple[int, ...] = (1, 1),
    padding: tuple[int, ...] = (1, 1),
    groups: int = 1,
    activation: int = 1,
    position: int = 0,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    matrix: bool | None = None,
) -> dict[str, dict[str, Any]]:
    """The arguments of a right call of each operator; `matrix` for the CUDA library alone."""
    out = sizes_of_output(input[2:], weight[2:], stride, dilation, padding)
    rows = [[s, d, p, o] for s, d, p, o in zip(stride, dilation, padding, out, strict=True)]
    if len(rows) == 1:
        rows.insert(0, [1, 1, 0, 1])
    n, k = input[0], weight[0]
    positions = n
    for size in out:
        positions *= size
    format = torch.channels_last if channels_last else torch.contiguous_format
    draw = lambda *shape: torch.randn(shape).to(dtype)  # noqa: E731
    numbers = [0.0 if activation == 1 else 1.0, 1.0]
    options = {"geometry": [*rows[0], *rows[1], groups, activation, position], "numbers": numbers}
    # The gradients' kernels read bits: a smooth activation is differentiated before them.
    linear = {"geometry": [*rows[0], *rows[1], groups, activation if activation <= 2 else 0, position],
              "numbers": numbers}  # fmt: skip
    x, w, grad = (draw(*shape).contiguous(memory_format=format) for shape in (input, weight, (n, k, *out)))
    bits = torch.randint(256, (positions, (k + 7) // 8), dtype=torch.uint8)
    last, family = {"channels_last": channels_last}, {} if matrix is None else {"matrix": matrix}
    packed = w.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2) if matrix else w
    wanted = {f"{name}_wanted": True for name in ("weight", "bias", "gamma", "beta")}
    made = {
        "forward": {
            "input": x, "weight": w, "bias": draw(k), "gamma": draw(n, k), "beta": draw(n, k), **last, **options,
            **family, "keep": True,
        },
        "grad_input": {
            "grad": grad, "bits": bits, "weight": packed, "gamma": draw(n, k), "input_size": list(input), **last,
            **linear, **family,
        },
        "grad_weight": {
            "grad": grad, "bits": bits, "input": x, "weight": w, "bias": draw(k), "gamma": draw(n, k), **wanted,
            **linear, **family,
        },
    }  # fmt: skip
    if matrix is None:
        made["forward_and_copy"] = {**made["forward"], "copy_bias": True, "copy_beta": True}
        sizes = {"gamma_size": [n, k, 1, 1], "beta_size": [n, 1, k]}
        made["backward"] = {**made["grad_weight"], "input_wanted": True, **last, **sizes}
    return made


def call(operators: Any, operator: str, arguments: dict[str, Any]) -> Any:
    """What one of a library's operators makes of arguments by their names."""
    return getattr(operators, operator)(**arguments)


def _drawn(r: random.Random, matrix: bool | None) -> dict[str, dict[str, Any]]:
    rank = 2 if matrix else r.choice([1, 2])
    groups = 1 if matrix is not None else r.choice([1, 1, 2, 3])
    each = 8 if matrix else 1
    wide, narrow = (each * r.choice([1, 2, 3]) for _ in range(2))
    kernel = tuple(r.choice([1, 2, 3]) for _ in range(rank))
    dtype = r.choice([torch.float32, torch.bfloat16, torch.float16] + [torch.float64] * (matrix is None))
    return calls(
        (r.choice([0, 1, 2, 3]), narrow * groups, *(r.choice([5, 6, 9]) for _ in kernel)),
        (wide * groups, narrow, *kernel),
        stride=tuple(r.choice([1, 1, 2]) for _ in kernel),
        dilation=tuple(r.choice([1, 1, 2]) for _ in kernel),
        padding=tuple(r.choice([0, 1, 2]) for _ in kernel),
        groups=groups,
        activation=r.randrange(len(ACTIVATIONS) if matrix is None else 3),
        position=r.randrange(2),
        dtype=dtype,
        channels_last=bool(matrix) or (rank == 2 and r.random() < 0.5),
        matrix=matrix,
    )


def _spoil(arguments: dict[str, Any], name: str, operator: str, r: random.Random) -> None:
    value = arguments[name]
    if name in _TENSORS[operator] and isinstance(value, Tensor):
        spoil_tensor(arguments, name, r)
    elif isinstance(value, list):
        arguments[name] = spoilt_list(value, ABSURD_NUMBERS if name == "numbers" else ABSURD, r)
    elif isinstance(value, bool):
        arguments[name] = not value


def hostile_calls(namespace: str, seed: int, count: int) -> tuple[int, int]:
    """How many of `count` drawn calls gave a result, and how many raised."""
    r = random.Random(seed)
    torch.manual_seed(seed)
    answered = raised = 0
    for _ in range(count):
        matrix = None if namespace == "film_kernels_cpu" else r.random() < 0.5
        operator = r.choice(OPERATORS if matrix is None else OF_EVERY_LIBRARY)
        arguments = _drawn(r, matrix)[operator]
        for name in r.sample(list(arguments), r.choice([0, 1, 1, 1, 2, 3])):
            _spoil(arguments, name, operator, r)
        if matrix is None and operator in PACKED and r.random() < 0.5:
            operator, arguments = PACKED[operator], packed_call(arguments)
            if r.random() < 0.1:
                spoil_tensor(arguments, "options", r)
        if answers(getattr(getattr(torch.ops, namespace), operator), arguments):
            answered += 1
        else:
            raised += 1
    return answered, raised


def main() -> None:
    namespace, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    be_a_process_of_little_memory()
    answered, raised = hostile_calls(namespace, seed, count)
    print(f"{answered} answered, {raised} raised")


if __name__ == "__main__":
    main()
