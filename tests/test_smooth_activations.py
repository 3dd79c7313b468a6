"""silu, gelu and their like: served by `vendor` and `reference`, and refused by what keeps one bit an element."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import film_kernels
from film_kernels.activations import ACTIVATIONS
from film_kernels.backends import BACKENDS, choose, cuda_device
from tests.helpers.cases import INTERPRETED, Case, assert_as_good_as_plain, problem_of, tensors_of
from tests.helpers.expected_refusals import assert_refused, words_of_refusal

pytestmark = pytest.mark.usefixtures("one_thread")
FUNCTIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "mish": F.mish,
}
SMOOTH = tuple(FUNCTIONS)
POSITIONS = ("post", "pre")
CELLS = [("vendor", dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16)] + [("reference", torch.float64)]


def test_these_are_all_the_smooth_ones():
    assert {name for name, row in ACTIVATIONS.items() if not row.one_bit} == set(SMOOTH)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("name", SMOOTH)
def test_the_formula(name, position):
    x, w, b, gamma, beta = tensors_of(Case("formula", (2, 3, 6, 5), (4, 3, 3, 3)), torch.float64)
    z, scale, shift = F.conv2d(x, w, b), 1 + gamma[:, :, None, None], beta[:, :, None, None]
    expected = scale * FUNCTIONS[name](z) + shift if position == "post" else FUNCTIONS[name](scale * z + shift)
    y = film_kernels.conv_film(x, w, b, gamma, beta, activation=name, film_position=position, gamma_offset=1)
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize(("backend", "dtype"), CELLS, indirect=["backend"], ids=str)
@pytest.mark.parametrize("name", SMOOTH)
def test_output_and_gradients(backend, dtype, name, position):
    if position == "post":
        case = Case("grouped", (2, 8, 9, 7), (12, 2, 3, 3), (2, 1), (1, 2), 1, 4, name, position, gamma_offset=1.0)
    else:
        case = Case("one_dimension", (3, 6, 30), (12, 6, 5), 1, 4, 2, 1, name, position)
    assert_as_good_as_plain(case, lambda seed: tensors_of(case, dtype, seed), backend)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("backend", ["vendor", "reference"], indirect=True)
@pytest.mark.parametrize("name", SMOOTH)
def test_gradcheck_and_gradgradcheck(backend, name, position, one_thread):
    case = Case("small", (2, 2, 4, 3), (3, 2, 2, 2), (2, 1), (1, 0), activation=name, film_position=position)
    tensors = [t.requires_grad_() for t in tensors_of(case, torch.float64)]

    def call(*args):
        return film_kernels.conv_film(*args, *case.geometry, **case.options, backend=backend)

    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


@pytest.mark.parametrize("backend", ["cpu", *INTERPRETED[:1]], indirect=True)
@pytest.mark.parametrize("name", SMOOTH)
def test_kernels_that_keep_one_bit_say_why_not(backend, name):
    case = Case("refused", (2, 3, 6, 5), (4, 3, 3, 3), activation=name, keep="bits")
    tensors = tensors_of(case, torch.float32)
    assert "one bit" in BACKENDS[backend].why_not(problem_of(case, tensors))
    assert_refused(backend, case, tensors, words_of_refusal(backend, case))


@pytest.mark.parametrize("name", SMOOTH)
def test_the_cuda_kernels_say_why_they_keep_no_bits(name, monkeypatch):
    monkeypatch.setattr(cuda_device, "_too_old", lambda device: None)
    case = Case("refused", (2, 3, 6, 5), (4, 3, 3, 3), activation=name)
    problem = problem_of(case, tensors_of(case, torch.float32))._replace(device=torch.device("cuda"))
    assert BACKENDS["cuda"].why_not(problem) is None
    assert BACKENDS["cuda"].why_not(problem._replace(activation="relu", keep="bits")) is None
    assert name in BACKENDS["cuda"].why_not(problem._replace(keep="bits"))


@pytest.mark.parametrize("name", SMOOTH)
def test_vendor_serves_without_a_pin(name):
    case = Case("chosen", (2, 3, 6, 5), (4, 3, 3, 3), activation=name)
    problem = problem_of(case, tensors_of(case, torch.float32))
    assert choose(problem, None).name == "vendor"


@pytest.mark.parametrize("name", SMOOTH)
def test_frozen_convolution_with_trained_film(name):
    case = Case("frozen", (2, 3, 6, 5), (4, 3, 3, 3), activation=name)
    x, w, b, gamma, beta = tensors_of(case, torch.float64)
    found = []
    for backend in ("vendor", "reference"):
        factors = gamma.clone().requires_grad_(), beta.clone().requires_grad_()
        film_kernels.conv_film(x, w, b, *factors, activation=name, backend=backend).square().sum().backward()
        found.append([factor.grad for factor in factors])
    torch.testing.assert_close(*found)


def test_the_one_bit_formula_refuses_them():
    x, w, b, gamma, beta = tensors_of(Case("bits", (1, 2, 4, 4), (2, 2, 3, 3), activation="silu"), torch.float64)
    case = Case("bits", (1, 2, 4, 4), (2, 2, 3, 3), activation="silu")
    grad = torch.ones(1, 2, 2, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="smooth"):
        film_kernels.reference.backward(problem_of(case, [x, w, b, gamma, beta]), grad, grad > 0, x, w, b, gamma)
