"""NaN and infinity: in the output as plain PyTorch has them, in the gradients wherever plain PyTorch has NaN."""

from __future__ import annotations

import pytest
import torch

import film_kernels
from tests.helpers.cases import Case, run, tensors_of

PLACES = ("input", "weight", "bias", "gamma", "beta")


def _case(place, activation, position):
    """Without padding where the weight is spoiled: whether 0 * NaN of a padded position counts differs from one of
    PyTorch's own algorithms to the next."""
    padding = 0 if place == PLACES.index("weight") else 1
    return Case("special", (2, 3, 8, 9), (20, 3, 3, 3), padding=padding, activation=activation, film_position=position)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", range(5), ids=PLACES)
@pytest.mark.parametrize("position", ["post", "pre"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "none", "silu"])
def test_output(backend, place, value, activation, position):
    case = _case(place, activation, position)
    tensors = tensors_of(case, torch.float32)
    tensors[place].view(-1)[tensors[place].numel() // 2] = value
    found, expected = (
        film_kernels.conv_film(*tensors, *case.geometry, **case.options, backend=name)
        for name in (backend, "reference")
    )
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("place", range(6), ids=[*PLACES, "grad"])
@pytest.mark.parametrize("position", ["post", "pre"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "none", "silu"])
def test_gradients_are_nan_where_plain_pytorch_has_nan(backend, place, activation, position):
    case = _case(place, activation, position)
    tensors = tensors_of(case, torch.float32)
    grad = torch.randn(film_kernels.reference.conv_film(*tensors, *case.geometry).shape)
    spoiled = [*tensors, grad][place].view(-1)
    spoiled[spoiled.numel() // 2 :: max(7, spoiled.numel() // 31)] = float("nan")
    expected = run(case, tensors, grad, "reference", torch.float32)
    found = run(case, tensors, grad, backend, torch.float32)
    assert any(t.isnan().any() for t in expected)
    for a, b in zip(found, expected, strict=True):
        assert not (b.isnan() & ~a.isnan()).any()
        assert b.isnan().any() or not a.isnan().all()
    if activation != "leaky_relu":  # whose derivative at NaN is its lower slope in PyTorch, and 1 here
        for a, b in zip(found, expected, strict=True):
            here = ~a.isnan()
            torch.testing.assert_close(a[here], b[here], rtol=1e-4, atol=1e-4)


def test_largest_float16_results(backend):
    x = torch.full((1, 1, 4, 4), 200.0, dtype=torch.float16)
    w = torch.full((1, 1, 1, 1), 200.0, dtype=torch.float16)
    for gamma in (1.0, 1.637, 1.64):  # 40000, just below the largest, past it
        factor = torch.full((1, 1), gamma, dtype=torch.float16)
        y = film_kernels.conv_film(x, w, None, factor, backend=backend)
        assert torch.equal(y, factor.view(1, 1, 1, 1) * torch.nn.functional.conv2d(x, w))


def test_denormal_float16(backend):
    tiny = torch.tensor([6e-8, 1.2e-7, 3e-5, 6.1e-5, -6e-8], dtype=torch.float16).view(1, 1, 1, 5)
    y = film_kernels.conv_film(tiny, torch.ones(1, 1, 1, 1, dtype=torch.float16), activation="none", backend=backend)
    assert torch.equal(y, tiny)
