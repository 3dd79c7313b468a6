"""Compiles grad_weight's kernel for the tensors and gradients that a call may lack, a line for each: the interpreter
does not look at what it does not run."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from film_kernels.backends.triton import launch, report, tuning
from film_kernels.backends.triton.grad_weight import grad_weight

CASES = (  # FiLM's place, whether there are (bias, gamma, beta), the gradients that are wanted, of these and the weight
    ("post", (False, False, False), (True, False, False, False)),
    ("pre", (False, False, False), (True, False, False, False)),
    ("post", (True, True, True), (True, False, False, False)),
    ("post", (False, True, False), (False, False, True, False)),
    ("pre", (True, False, True), (False, True, False, True)),
)


def main() -> None:
    for position, there, wanted in CASES:
        problem = report.problem_of("strided", torch.float16)._replace(film_position=position)
        with FakeTensorMode(), launch.recording("nvidia") as launches:
            rows = (problem.batch, problem.out_channels)
            input, weight, grad = (
                torch.empty(shape, dtype=problem.dtype, device=problem.device, memory_format=problem.memory_format)
                for shape in (problem.input_shape, problem.weight_shape, problem.out_shape)
            )
            given = (
                torch.empty(shape, dtype=problem.dtype, device=problem.device) if has else None
                for has, shape in zip(there, (rows[1:], rows, rows), strict=True)
            )
            bits = torch.empty(1, dtype=torch.uint8, device=problem.device)
            entry = tuning.entries(problem, "grad_weight")[0]
            grad_weight(problem, grad, bits, (input, weight, *given), wanted, entry)
        for start in launches:
            report.compile_for(start, "sm_90")
        print(position, there, wanted, len(launches))


if __name__ == "__main__":
    main()
