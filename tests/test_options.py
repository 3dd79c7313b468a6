"""Options are plain numbers, whatever they come as, and whatever was called before."""

from __future__ import annotations

import fractions
import inspect

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from film_kernels import conv_film, reference
from film_kernels.problems import conv_film as problem

X, W = torch.randn(2, 4, 9, 9), torch.randn(6, 4, 3, 3)
OPTIONS = ("stride", "padding", "dilation", "groups")


@pytest.mark.parametrize("function", [conv_film, reference.conv_film])
def test_the_record_has_the_options_in_the_order_of_the_arguments(function):
    names = list(inspect.signature(function).parameters)
    assert tuple(names) == (*problem.TENSORS, *problem.OPTIONS, "backend")


@pytest.mark.parametrize("name", OPTIONS)
def test_a_fraction_is_refused_whatever_was_called_before(name):
    for value in (1.0, (1.0, 1), [1, 1.0], torch.tensor(1.0), np.float64(1), "1x", None, {1: 1}, b"1"):
        for _ in range(2):
            with pytest.raises((TypeError, ValueError), match=f"^{name} must be"):
                conv_film(X, W, **{name: value})
            conv_film(X, W, **{name: 1})
            conv_film(X, W, **{name: (1, 1) if name != "groups" else 1})


@pytest.mark.parametrize("name", OPTIONS[:3])
def test_integers_of_other_kinds_are_read_at_every_call(name):
    box, array = torch.tensor(1), np.array([1, 1])
    for value in (1, 2):
        box.fill_(value)
        array[:] = value
        expected = torch.relu(F.conv2d(X, W, **{name: value}))
        for given in (box, (box, box), [value, box], np.int64(value), tuple(array), torch.Size((value, value))):
            torch.testing.assert_close(conv_film(X, W, **{name: given}), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("value", [2**31, 2**62, 2**63, 2**64, 10**30])
def test_numbers_too_large_name_the_argument(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be at most"):
        conv_film(X, W, **{name: value})


def test_an_output_too_large_names_what_makes_it():
    with pytest.raises(ValueError, match=r"padding=2147483647 gives an output .* more than can be addressed"):
        conv_film(X, W, padding=2**31 - 1)
    with pytest.raises(ValueError, match="input is smaller than the kernel"):
        conv_film(X, W, dilation=2**31 - 1)
    assert conv_film(X, W, stride=2**31 - 1).shape == (2, 6, 1, 1)


@pytest.mark.parametrize("kind", [float, np.float32, torch.tensor, fractions.Fraction, lambda v: torch.tensor([v])])
def test_a_slope_is_any_number_and_read_at_every_call(kind):
    for slope in (0.25, 0.5):
        y = conv_film(X, W, activation="leaky_relu", negative_slope=kind(slope))
        torch.testing.assert_close(y, F.leaky_relu(F.conv2d(X, W), slope), rtol=1e-4, atol=1e-4)
    box = torch.tensor(0.25)
    before = conv_film(X, W, activation="leaky_relu", negative_slope=box)
    assert not torch.equal(before, conv_film(X, W, activation="leaky_relu", negative_slope=box.fill_(0.75)))


@pytest.mark.parametrize("name", ["negative_slope", "gamma_offset"])
@pytest.mark.parametrize("value", ["2", b"2", 1j, None, [1.0], 10**400, {}], ids=repr)
def test_what_is_no_number_is_refused(name, value):
    with pytest.raises(TypeError, match=f"^{name} must be a number"):
        conv_film(X, W, **{name: value})


def test_a_slope_cannot_be_learnt():
    """PyTorch's leaky_relu refuses it too: its gradient would be lost without a word."""
    with pytest.raises(TypeError, match="negative_slope must be a number, got a tensor that requires a gradient"):
        conv_film(X, W, activation="leaky_relu", negative_slope=torch.nn.Parameter(torch.tensor(0.1)))


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_gamma_offset_may_be_learnt(backend, given, shape):
    gamma = torch.randn(2, 6) if given else None
    offset = torch.nn.Parameter(torch.zeros(shape))
    for value in (0.5, 2.0):
        with torch.no_grad():
            offset.fill_(value)
        y = conv_film(X, W, None, gamma, gamma_offset=offset, backend=backend)
        scale = (gamma if given else torch.ones(1, 6)) + value
        activated = torch.relu(F.conv2d(X, W))
        torch.testing.assert_close(y, scale[:, :, None, None] * activated, rtol=1e-4, atol=1e-4)
        (gradient,) = torch.autograd.grad(y.sum(), offset)
        torch.testing.assert_close(gradient, activated.sum().reshape(shape), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"gamma_offset must be one number, got shape \(2,\)"):
        conv_film(X, W, gamma_offset=torch.ones(2))


@pytest.mark.parametrize("name", ["activation", "film_position"])
@pytest.mark.parametrize("value", [["relu"], None, 1, torch.tensor(1)], ids=repr)
def test_choices_are_names(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be one of"):
        conv_film(X, W, **{name: value})


@pytest.mark.parametrize("value", [["cpu"], {}, 1, torch.tensor(1), b"cpu"], ids=repr)
def test_a_backend_is_a_name(value):
    with pytest.raises(ValueError, match="backend must be one of 'cpu'"):
        conv_film(X, W, backend=value)
