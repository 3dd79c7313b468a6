"""What autograd keeps, and that results are the same bits every time."""

from __future__ import annotations

import os
import sys

import pytest
import torch

import film_kernels
from tests.helpers.cases import CASES, run, tensors_of
from tests.helpers.kept import kept_bytes
from tests.helpers.subprocesses import run_python


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("channels", [1, 8, 10, 64])
def test_at_most_one_bit_an_output_element(channels, channels_last):
    x = torch.randn(3, 4, 13, 11)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    layer = film_kernels.FusedFiLM(4, channels, 3)
    gamma, beta = (torch.randn(3, channels, requires_grad=True) for _ in range(2))
    known = [x, gamma, beta, *layer.parameters()]
    kept, y = kept_bytes(lambda: layer(x, gamma, beta), known)
    positions = y.numel() // channels
    assert 0 < kept <= positions * ((channels + 7) // 8)
    plain, _ = kept_bytes(
        lambda: film_kernels.film(torch.relu(torch.nn.functional.conv2d(x, layer.weight, layer.bias)), gamma, beta),
        known,
    )
    assert plain >= y.numel() * 4
    if channels % 8 == 0:
        assert plain >= 32 * kept


def test_nothing_is_kept_without_an_activation_or_a_gradient():
    x, w = torch.randn(2, 3, 9, 9), torch.randn(8, 3, 3, 3, requires_grad=True)
    assert kept_bytes(lambda: film_kernels.conv_film(x, w, activation="none"), [x, w])[0] == 0
    with torch.no_grad():
        assert kept_bytes(lambda: film_kernels.conv_film(x, w), [x, w])[0] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES[::5], ids=str)
def test_same_bits_from_run_to_run_and_with_any_number_of_threads(case, dtype):
    tensors = tensors_of(case, dtype)
    grad = torch.randn(film_kernels.reference.conv_film(*tensors, *case.geometry).shape)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 2, 3):
            torch.set_num_threads(count)
            results.append(run(case, tensors, grad, "cpu", dtype))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


# Prints by how many bytes the process grew at its peak, and how many the results take. Inputs are expanded: they take
# none.
GROWTH = """
import re, torch, film_kernels
torch.set_num_threads(2)
dtype = torch.{dtype}
x, w = torch.ones(1, 1, 1, dtype=dtype), torch.ones(1, 1, {taps}, dtype=dtype)
film_kernels.conv_film(x.expand(2, 1, 9), w, backend="cpu")
x, w = x.expand({batch}, 1, {size}).requires_grad_({backward}), w.requires_grad_({backward})
factor = torch.ones({batch}, 1, dtype=dtype) if {given} else None
# of this process alone: getrusage has the peak of the one that started it too
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
before = peak()
results = [film_kernels.conv_film(x, w, None, factor, factor, stride={stride}, activation="none", backend="cpu")]
if {backward}:
    grad = torch.ones(1, 1, 1, dtype=dtype).expand(results[0].shape)
    results += torch.autograd.grad(results[0], [x, w], grad)
print(peak() - before, sum(t.numel() * t.element_size() for t in results))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
@pytest.mark.skipif("FILM_KERNELS_SANITIZED" in os.environ, reason="sanitizers keep memory that was given back")
@pytest.mark.parametrize(
    ("dtype", "batch", "size", "taps", "stride", "given", "backward"),
    [
        ("float32", 2**21, 1, 1, 1, False, False),
        ("float32", 2**21, 1, 1, 1, True, False),
        ("float32", 2**21, 1, 1, 1, False, True),
        ("bfloat16", 1, 2**25, 3, 1, False, False),
        ("bfloat16", 1, 2**25, 3, 1, False, True),
        ("bfloat16", 1, 2**25, 3, 2, False, True),
    ],
)
def test_memory_to_work_in_follows_what_is_there(dtype, batch, size, taps, stride, given, backward):
    """Not the samples where they have no factors of their own, nor the length of a row."""
    script = GROWTH.format(
        dtype=dtype, batch=batch, size=size, taps=taps, stride=stride, given=given, backward=backward
    )
    done = run_python("-c", script)
    assert done.returncode == 0, done.stderr
    grown, results = map(int, done.stdout.split())
    assert results <= grown + 2**24  # it was counted at all, but for what the process had to spare
    a_sample = given * 2 * 4 + backward * 2 * 8  # gamma and beta; in double, the sums of two gradients
    assert grown <= results + a_sample * batch + 80 * 2**20  # that two threads have at hand, whatever the row's length


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_that_are_cut(dtype, stride):
    """Longer than the memory that a thread takes: what comes of them is what comes of their pieces."""
    size, piece, kernel = 2_300_003, 100_001, 3
    x, w, b = (t.to(dtype) for t in (torch.randn(1, 2, size), torch.randn(3, 2, kernel), torch.randn(3)))
    factors = [torch.randn(1, 3).to(dtype) for _ in range(2)]
    options = {"activation": "leaky_relu", "stride": stride, "backend": "cpu"}
    grad = torch.randn(1, 3, (size - kernel) // stride + 1).to(dtype)

    def run(x, grad):
        leaves = [t.clone().requires_grad_() for t in (x, w, b, *factors)]
        y = film_kernels.conv_film(*leaves, **options)
        return y.detach(), torch.autograd.grad(y, leaves, grad)

    y, gradients = run(x, grad)
    dx, sums = torch.zeros_like(x).double(), [torch.zeros_like(t).double() for t in (w, b, *factors)]
    for begin in range(0, y.shape[2], piece):
        end = min(begin + piece, y.shape[2])
        columns = slice(begin * stride, (end - 1) * stride + kernel)
        part, of_part = run(x[:, :, columns].contiguous(), grad[:, :, begin:end].contiguous())
        torch.testing.assert_close(y[:, :, begin:end], part)
        dx[:, :, columns] += of_part[0]
        for total, one in zip(sums, of_part[1:], strict=True):
            total += one
    tolerance = {"rtol": 0.02, "atol": 0.1} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(gradients[0].double(), dx, **tolerance)
    for found, total in zip(gradients[1:], sums, strict=True):
        error = (found.double() - total).abs().max() / total.abs().max()
        assert error < (0.02 if dtype == torch.bfloat16 else 1e-4)


@pytest.mark.slow
def test_tensors_past_2_to_the_31_elements():
    """Offsets of input, output and gradient pass 2^31: the last corner must come out as it does alone. (16 GB)"""
    n, size, corner = 9, 16000, 40
    w, gamma, beta = (t.bfloat16() for t in (torch.randn(1, 1, 3, 3), torch.randn(n, 1), torch.randn(n, 1)))
    x = torch.zeros(n, 1, size, size, dtype=torch.bfloat16)
    assert x.numel() > 2**31
    x[-1, :, -corner:, -corner:] = torch.randn(1, corner, corner)
    alone = x[-1:, :, -corner:, -corner:].clone().requires_grad_()
    one = torch.ones((), dtype=torch.bfloat16)
    expected = film_kernels.conv_film(alone, w, None, gamma[-1:], beta[-1:], backend="cpu")
    expected.backward(one.expand_as(expected))

    y = film_kernels.conv_film(x.requires_grad_(), w, None, gamma, beta, backend="cpu")
    inner = corner - 2
    assert torch.equal(y[-1:, :, -inner:, -inner:], expected)
    assert (y[0] == beta[0]).all()
    y.backward(one.expand_as(y))
    assert torch.equal(x.grad[-1:, :, -inner:, -inner:], alone.grad[:, :, 2:, 2:])
