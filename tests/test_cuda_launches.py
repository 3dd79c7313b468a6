"""How many kernels a training step with the CUDA kernels starts, counted on the emulator; the library's convolution
and its two gradients count as one each."""

from __future__ import annotations

import ctypes
import os

import pytest
import torch

from film_kernels.backends import BACKENDS
from tests.helpers.cases import EMULATED, Case, incoming_gradient, problem_of, tensors_of
from tests.helpers.launches import library_calls

pytestmark = pytest.mark.skipif(not EMULATED, reason="the sources are not here, only the tests")


@pytest.mark.parametrize(
    ("keep", "position", "most"), [("fast", "post", 6), ("fast", "pre", 6), ("least", "post", 5), ("least", "pre", 6)]
)
def test_a_training_step_starts_at_most_six_kernels(emulator, keep, position, most):
    emulator(0)
    started = ctypes.CDLL(os.environ["FILM_KERNELS_CUDA_EMULATOR"]).film_emulator_launches
    case = Case("small", (2, 24, 6, 5), (16, 24, 3, 3), film_position=position, keep=keep)
    tensors = tensors_of(case, torch.bfloat16, channels_last=True)
    grad = incoming_gradient(case, tensors).contiguous(memory_format=torch.channels_last)
    kernels, problem = BACKENDS["cuda"].of(problem_of(case, tensors)), problem_of(case, tensors)
    input, weight, bias, gamma, beta = tensors
    copies = []

    def step():
        read = kernels.reads(problem, (True,) * 5)
        copied = [t if asked else None for t, asked in zip((bias, beta), read, strict=True)]
        _, kept, made = kernels.forward_and_copy(problem, tensors, copied)
        copies.extend(made)
        kernels.backward(problem, grad, kept, (input, weight, made[0], gamma, made[1]), (True,) * 5)

    before = started()
    names = library_calls(step)
    ours = started() - before
    assert ours == 3 and names.count("convolution_backward") == 2
    assert len(names) + ours <= most, names
    assert torch.equal(copies[0], bias) and copies[0].data_ptr() != bias.data_ptr()
    assert position == "post" or (torch.equal(copies[1], beta) and copies[1].data_ptr() != beta.data_ptr())
