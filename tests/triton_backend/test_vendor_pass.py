"""The passes around the library's convolution, in the interpreter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from film_kernels import reference
from film_kernels.activations import ACTIVATIONS
from film_kernels.backends.triton.vendor_pass import finish_forward, start_backward
from tests.helpers.cases import Case, incoming_gradient, pre_activation, problem_of, run, tensors_of
from tests.helpers.pairs import pairs

PLAIN = Case("plain", (2, 3, 9, 7), (20, 3, 3, 3))
ONE_DIMENSION = Case("one_dimension", (3, 3, 700), (5, 3, 3))
CHOICES = {
    "activation": tuple(ACTIVATIONS),
    "film_position": ("post", "pre"),
    "case": (PLAIN, ONE_DIMENSION),
    "channels_last": (False, True),
}


def raw_of(case, tensors):
    """The library's result without the bias, dense in the problem's memory format."""
    problem = problem_of(case, tensors)
    return reference.convolution(problem, *tensors[:2], None).contiguous(memory_format=problem.memory_format)


@pytest.mark.parametrize(
    "row", list(pairs(CHOICES, lambda row: True)), ids=lambda row: "-".join(map(str, row.values()))
)
def test_equals_plain_pytorch(row):
    position = row["film_position"]
    case = replace(row["case"], activation=row["activation"], film_position=position, gamma_offset=1.0)
    tensors = tensors_of(case, torch.float32, channels_last=row["channels_last"])
    grad = incoming_gradient(case, tensors)
    problem = problem_of(case, tensors)
    raw = raw_of(case, tensors)
    expected_y, _, _, *expected_sums = run(case, tensors, grad, "reference", torch.float32)
    dz, *sums = start_backward(problem, grad, raw, *tensors[2:], (True,) * 4)
    for found, value in zip(sums, expected_sums, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-4)
    z = reference.convolution(problem, *tensors[:3]).requires_grad_()
    y = (
        reference.film(case_activation(case, z), *tensors[3:], 1.0)
        if position == "post"
        else case_activation(case, reference.film(z, *tensors[3:], 1.0))
    )
    y.backward(grad)
    torch.testing.assert_close(dz, z.grad)
    assert dz.stride() == raw.stride()
    assert finish_forward(problem, raw, *tensors[2:], out=raw) is raw
    torch.testing.assert_close(raw, expected_y, rtol=1e-5, atol=1e-5)


def case_activation(case, v):
    return ACTIVATIONS[case.activation].apply(v, case.negative_slope)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bits_round_once(dtype):
    tensors = tensors_of(PLAIN, dtype)
    raw = raw_of(PLAIN, tensors)
    exact = [t.double() for t in tensors]
    v = raw.double() + exact[2].reshape(-1, 1, 1)
    expected = reference.film(v.relu(), *exact[3:]).to(dtype)
    found = finish_forward(problem_of(PLAIN, tensors), raw, *tensors[2:], out=torch.empty_like(raw))
    torch.testing.assert_close(found, expected, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("wanted", [(1, 0, 0, 0), (0, 1, 0, 1), (0, 0, 1, 0)])
def test_only_what_is_wanted_and_absent_tensors(wanted):
    case = replace(PLAIN, film_position="pre")
    tensors = [*tensors_of(case, torch.float32)[:2], None, None, None]
    grad = incoming_gradient(case, tensors).sum(1, keepdim=True).expand(-1, 20, -1, -1)
    raw = raw_of(case, tensors)
    found = start_backward(problem_of(case, tensors), grad, raw, None, None, None, wanted)
    u = torch.where(raw <= 0, 0, grad)
    expected = (u, u.sum((0, 2, 3)), (u * raw).sum((2, 3)), u.sum((2, 3)))
    for asked, one, other in zip(wanted, found, expected, strict=True):
        assert (one is not None) == bool(asked)
        if asked:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


def test_nan_stays_and_runs_give_the_same_bits():
    tensors = tensors_of(PLAIN, torch.float32)
    tensors[0][0, 0, 4, 4] = float("nan")
    raw = raw_of(PLAIN, tensors)
    problem = problem_of(PLAIN, tensors)
    y = finish_forward(problem, raw, *tensors[2:], out=torch.empty_like(raw))
    assert torch.equal(y.isnan(), pre_activation(PLAIN, tensors, torch.float32).isnan())
    grad = torch.randn_like(raw)
    first, second = (start_backward(problem, grad, raw, *tensors[2:], (True,) * 4) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.isnan(), other.isnan()) and torch.equal(one.nan_to_num(), other.nan_to_num())
