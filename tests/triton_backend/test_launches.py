"""How many kernels a training step starts, the library's convolution and its two gradients counted as one each."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from film_kernels.backends import BACKENDS, library
from film_kernels.backends.triton import launch
from film_kernels.problems import conv_film
from tests.helpers.launches import library_calls

INPUT, WEIGHT = (8, 64, 30, 30), (72, 64, 3, 3)


@pytest.mark.parametrize(
    ("keep", "position", "most"), [("fast", "post", 6), ("fast", "pre", 6), ("least", "post", 5), ("least", "pre", 6)]
)
def test_a_training_step_starts_at_most_six_kernels(keep, position, most, monkeypatch):
    convolutions = []

    def convolution(problem, input, weight, bias):
        """The library's, which a PyTorch without CUDA does not even pretend to call."""
        convolutions.append(bias)
        return library.result_like(problem)

    monkeypatch.setattr(library, "convolution", convolution)
    rows = (INPUT[0], WEIGHT[0])
    device, dtype = torch.device("cuda"), torch.bfloat16
    shapes = (INPUT, WEIGHT, rows[1:], rows, rows)
    kinds = [(torch.Size(shape), dtype, device, torch.strided) for shape in shapes]
    problem = conv_film.problem_of(kinds, True, (1, 1, 1, 1, "relu", 0.01, position, 0.0, keep))
    kernels = BACKENDS["triton"].of(problem)
    with FakeTensorMode(), launch.recording("nvidia") as recorded:
        tensors = [torch.empty(shape, device=device, dtype=dtype) for shape in shapes]
        tensors[:2] = [t.to(memory_format=torch.channels_last) for t in tensors[:2]]
        input, weight, bias, gamma, beta = tensors
        grad = torch.empty(problem.out_shape, device=device, dtype=dtype, memory_format=torch.channels_last)

        def step():
            read = kernels.reads(problem, (True,) * 5)
            copied = [t if asked else None for t, asked in zip((bias, beta), read, strict=True)]
            _, kept, copies = kernels.forward_and_copy(problem, tensors, copied)
            given = (input, weight, copies[0], gamma, copies[1])
            return kernels.backward(problem, grad, kept, given, (True,) * 5)

        names = library_calls(step)
    started = [*names, *(one.kernel.__name__ for one in recorded), *("convolution" for _ in convolutions)]
    assert len(started) <= most, started
    assert names.count("convolution_backward") == 2 and len(recorded) == 3
    assert convolutions == ([None] if keep == "fast" else [])
