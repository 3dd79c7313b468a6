"""Past 2^31 elements, where an offset of 32 bits reads and writes elsewhere. They take tens of gigabytes."""

from __future__ import annotations

import pytest
import torch

from film_kernels import conv_film, norm_film
from film_kernels.backends import BACKENDS
from film_kernels.problems.conv_film import KEEPS
from tests.helpers import cases, norm_cases

pytestmark = pytest.mark.slow
ELEMENTS = 1 << 31


def needs(gigabytes: int) -> None:
    if (free := torch.cuda.mem_get_info()[0]) < gigabytes << 30:
        pytest.skip(f"{gigabytes} GiB are needed, {free >> 30} are free")


@pytest.fixture(autouse=True)
def _gives_memory_back(card):
    yield
    torch.cuda.empty_cache()


def gradients(call, leaves, grad):
    leaves = [t.detach().requires_grad_() for t in leaves]
    y = call(leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


def assert_alike(found, expected, at: slice) -> None:
    """The samples `at` of y, of the input's gradient, and of gamma's and beta's."""
    for place in (0, 1, 4, 5):
        torch.testing.assert_close(found[place][at], expected[place], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("keep", KEEPS)
def test_conv_film(backend, keep):
    """The last samples of a batch of more than 2^31 input and output elements are as a batch of their own."""
    needs(40)
    k, side, n = 32, 512, ELEMENTS // (32 * 512 * 512) + 2
    case = cases.Case("large", (n, k, side, side), (k, k, 1, 1), keep=keep)
    generator = torch.Generator("cuda").manual_seed(0)
    draw = lambda *size: torch.randn(size, generator=generator, device="cuda", dtype=torch.bfloat16)  # noqa: E731
    input = torch.empty(case.input, device="cuda", dtype=torch.bfloat16, memory_format=torch.channels_last)
    grad = torch.empty_like(input)
    for t in (input, grad):
        t.normal_(generator=generator)
    tensors = [input, draw(k, k, 1, 1) / k**0.5, draw(k), draw(n, k), draw(n, k)]
    reason = BACKENDS[backend].why_not(cases.problem_of(case, tensors))
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    call = lambda leaves: conv_film(*leaves, **case.options, backend=backend)  # noqa: E731
    found = gradients(call, tensors, grad)
    last = slice(n - 2, n)
    few = [input[last], *tensors[1:3], *(t[last] for t in tensors[3:])]
    assert_alike(found, gradients(call, few, grad[last]), last)


@pytest.mark.parametrize(("norm", "groups"), [("group", 4), ("batch", None), ("rms", None)])
def test_norm_film(backend, norm, groups):
    """The same for a normalisation; BatchNorm's statistics are those of the whole batch, which repeats its samples."""
    needs(40)
    c, side, n = 32, 512, ELEMENTS // (32 * 512 * 512) + 2
    generator = torch.Generator("cuda").manual_seed(0)
    draw = lambda *size: torch.randn(size, generator=generator, device="cuda", dtype=torch.bfloat16)  # noqa: E731
    few = [draw(2, c, side, side), draw(c), draw(c), draw(2, c), draw(2, c)]
    grad = draw(2, c, side, side)
    repeated = lambda t: t.repeat(n // 2, *(1,) * (t.dim() - 1))  # noqa: E731
    tensors = [repeated(few[0]), *few[1:3], *map(repeated, few[3:])]
    case = norm_cases.Case(tuple(tensors[0].shape), norm, groups, dtype=torch.bfloat16)
    reason = BACKENDS[backend].why_not(norm_cases.problem_of(case, tensors))
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    call = lambda leaves: norm_film(leaves[0], norm, groups, *leaves[1:], activation="silu", backend=backend)  # noqa: E731
    found = gradients(call, tensors, repeated(grad))
    assert_alike(found, gradients(call, few, grad), slice(n - 2, n))
