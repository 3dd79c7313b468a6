"""What the CUDA kernels compute activations with, csrc/cuda/activate.cuh, on the emulator: values and gradients are
held to the same formulas in extended precision as those of the CPU kernels."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
import torch

from film_kernels.activations import ACTIVATIONS, CODES
from tests.helpers import emulation
from tests.test_activations_cpu import (
    KINDS,
    LINEAR,
    LOWER_SLOPE,
    SMOOTH,
    errors,
    plain,
    references,
    sample,
    special,
    tiny,
)

SOURCE = Path(__file__).parent / "helpers" / "activations.cu"
pytestmark = [
    pytest.mark.skipif(not emulation.KERNELS.is_dir(), reason="the sources are not here, only the tests"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return ctypes.CDLL(str(emulation.build("activations", [SOURCE], shared=True)))


def run(library, name: str, v: torch.Tensor, g: torch.Tensor | None = None) -> torch.Tensor:
    """act(v) and g * act'(v), as two rows; g is 1 where it is not given."""
    g, found = torch.ones_like(v) if g is None else g, torch.empty(2, len(v), dtype=v.dtype)
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (g, v, found[0], found[1])]
    assert library.film_activations(*pointers, ctypes.c_int64(len(v)), CODES[name], ctypes.c_double(LOWER_SLOPE)) == 0
    return found


@pytest.mark.parametrize("name", SMOOTH)
def test_errors_are_at_most_twice_those_of_pytorch(library, name):
    for low, high in ((-1, 1), (-12, 12), (-100, 100)):
        reference, theirs = references(name, sample, low, high, torch.float32)
        ours = errors(run(library, name, sample(low, high, torch.float32)), reference)
        for kind, mine, limit in zip(KINDS, ours.max(1), 2 * theirs.max(1), strict=True):
            assert mine <= limit, f"{kind} in ({low}, {high}): {mine:.3g}, twice PyTorch's is {limit:.3g}"
    tails = [] if name in ("gelu", "gelu_tanh") else [(sample, -80, 12, torch.float32)]
    for sampled, *arguments in [(tiny, torch.float32), *tails]:
        reference, theirs = references(name, sampled, *arguments)
        ours, size = errors(run(library, name, sampled(*arguments)), reference), np.abs(reference[0])
        assert (ours[0] / size).max() <= 2 * (theirs[0] / size).max(), arguments


@pytest.mark.parametrize("name", SMOOTH)
def test_special_values(library, name):
    """What PyTorch gives in float64: in float32 it has NaN for the slope of gelu_tanh at 1e30."""
    v, eps = special(torch.float32), torch.finfo(torch.float32).eps
    found, expected = run(library, name, v), plain(name, v.double())
    torch.testing.assert_close(found.double(), expected, rtol=8 * eps, atol=8 * eps, equal_nan=True)
    zero = v == 0
    assert torch.equal(found[0][zero].signbit(), expected[0][zero].signbit())
    largest = torch.finfo(torch.float32).max
    far = torch.logspace(-30, float(np.log10(largest)) - 1e-6, 512, dtype=torch.float64).to(torch.float32)
    assert run(library, name, torch.cat([far, -far])).isfinite().all()


@pytest.mark.parametrize("name", LINEAR)
def test_linear_ones_are_those_of_pytorch(library, name):
    v = torch.cat([special(torch.float32), sample(-3, 3, torch.float32)])
    g = sample(-1, 1, torch.float32)[: len(v)].repeat(2)[: len(v)]
    g[::7] = float("inf")  # of which relu lets nothing through
    expected = torch.stack([plain(name, v)[0], ACTIVATIONS[name].gradient(g, v, LOWER_SLOPE)])
    # NaN is on the upper branch; PyTorch takes the lower one for the gradient of leaky_relu.
    expected[1][v.isnan()] = g[v.isnan()]
    torch.testing.assert_close(run(library, name, v, g), expected, rtol=0, atol=0, equal_nan=True)
