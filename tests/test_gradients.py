"""Derivatives that are not a plain backward pass, and the formulas of the one-bit backward themselves."""

from __future__ import annotations

import pytest
import torch

import film_kernels
from film_kernels import reference
from tests.helpers.cases import (
    CASES,
    EXPECTED,
    INTERPRETED,
    Case,
    assert_close,
    finest,
    incoming_gradient,
    pre_activation,
    problem_of,
    run,
    tensors_of,
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_bit_formulas_equal_autograd(case):
    tensors = tensors_of(case, torch.float64)
    grad = incoming_gradient(case, tensors)
    upper = ~(pre_activation(case, tensors, torch.float64) <= 0)
    found = reference.backward(problem_of(case, tensors), grad, upper, *tensors[:4])
    for gradient, expected in zip(found, run(case, tensors, grad, "reference", torch.float64)[1:], strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def _clear_of_the_kink(case):
    """Tensors whose pre-activation finite differences do not carry over the kink."""
    for seed in range(99):
        tensors = tensors_of(case, torch.float64, seed)
        if pre_activation(case, tensors, torch.float64).abs().min() > 1e-3:
            return [t.requires_grad_() for t in tensors]
    raise AssertionError("no draw keeps clear of the kink")


@pytest.mark.parametrize("backend", [*EXPECTED, *INTERPRETED], indirect=True)  # float64, which cuda does not serve
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
@pytest.mark.parametrize("position", ["post", "pre"])
def test_gradcheck_and_gradgradcheck(backend, position, activation, one_thread):
    groups = 1 if backend == "triton" else 2
    case = Case(
        "small", (2, 2, 4, 3), (4, 2 // groups, 2, 2), stride=(2, 1), padding=(1, 0), groups=groups,
        activation=activation, film_position=position, gamma_offset=1.0,
    )  # fmt: skip
    tensors = _clear_of_the_kink(case)

    def call(*args):
        return film_kernels.conv_film(*args, *case.geometry, **case.options, backend=backend)

    assert torch.autograd.gradcheck(call, tensors)
    if backend != "triton":  # the second derivative is the plain formula's, and the interpreter takes long to get there
        assert torch.autograd.gradgradcheck(call, tensors)


def test_gradient_penalty(backend):
    """A second derivative as it is met in practice: the norm of an input gradient is trained."""

    dtype = finest(backend)

    def penalty(backend):
        x, w, b, gamma, beta = (t.requires_grad_() for t in tensors_of(CASES[0], dtype))
        y = film_kernels.conv_film(x, w, b, gamma, beta, backend=backend)
        (gx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        gx.square().sum().backward()
        return [t.grad for t in (x, w, b, gamma, beta)]

    for found, expected in zip(penalty(backend), penalty("reference"), strict=True):
        assert_close(found / expected.abs().max(), expected / expected.abs().max())


def _related(how, leaves):
    """The five arguments, of which one depends on another."""
    x, w, b, gamma, beta = leaves
    mean = x.mean((2, 3)) @ torch.ones(x.shape[1], w.shape[0], dtype=x.dtype)
    return {
        "independent": (x, w, b, gamma, beta),
        "gamma made from the input": (x, w, b, gamma * mean, beta),
        "beta made from the input": (x, w, b, gamma, beta * mean),
        "beta made from gamma": (x, w, b, gamma, beta * gamma),
        "one tensor as gamma and beta": (x, w, b, gamma, gamma),
        "one vector as bias and beta": (x, w, b, gamma, b),
        "one vector three times": (x, w, b, b, b),
        "weight made from gamma": (x, w * gamma.mean(), b, gamma, beta),
        "input made from the weight": (x * w.mean(), w, b, gamma, beta),
        "input made from the bias": (x + b.sum(), w, b, gamma, beta),
    }[how]


@pytest.mark.parametrize("position", ["post", "pre"])
@pytest.mark.parametrize("how", [
    "independent", "gamma made from the input", "beta made from the input", "beta made from gamma",
    "one tensor as gamma and beta", "one vector as bias and beta", "one vector three times", "weight made from gamma",
    "input made from the weight", "input made from the bias",
])  # fmt: skip
def test_create_graph_where_arguments_depend_on_one_another(how, position):
    """Both derivatives, eagerly and by the registered operator; and a hook on an argument runs once a pass."""

    def penalty(call):
        leaves = [t.requires_grad_() for t in tensors_of(CASES[0], torch.float64)]
        arguments = _related(how, leaves)
        calls = []
        for argument in arguments:
            argument.register_hook(lambda grad: calls.append(1))
        first = torch.autograd.grad(call(arguments).square().sum(), leaves, create_graph=True, allow_unused=True)
        once, first = len(calls), [t for t in first if t is not None]
        second = torch.autograd.grad(sum(t.square().sum() for t in first), leaves, allow_unused=True)
        return [*first, *(t for t in second if t is not None)], once

    def by(backend):
        return lambda arguments: film_kernels.conv_film(*arguments, film_position=position, backend=backend)

    def operator(arguments):
        arguments = [*arguments[:3], *(t.expand(arguments[0].shape[0], -1) for t in arguments[3:])]
        options = ((1, 1), (0, 0), (0, 0), (1, 1), 1, "relu", 0.1, position, 0.0, "cpu", True)
        return torch.ops.film_kernels.conv_film(*arguments, *options)[0]

    expected, hooks = penalty(by("reference"))
    for call in (by("cpu"), by("vendor"), operator):
        found, calls = penalty(call)
        assert calls == hooks
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_create_graph_through_a_layer_that_is_applied_twice():
    layers = [film_kernels.FusedFiLM(4, 4, 3, padding=1).double() for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    results = []
    for layer, name in zip(layers, ("cpu", "reference"), strict=True):
        generator = torch.Generator().manual_seed(5)
        x, gamma = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((2, 4, 6, 6), (2, 4)))
        gamma.requires_grad_()
        with film_kernels.use_backend(name):
            y = layer(layer(x, gamma, gamma), gamma, gamma)
        first = torch.autograd.grad(y.square().sum(), [gamma, *layer.parameters()], create_graph=True)
        second = torch.autograd.grad(sum(t.square().sum() for t in first), [gamma, *layer.parameters()])
        results.append([*first, *second])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


def test_gradients_accumulate_and_graph_is_freed(backend):
    x, w = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3, requires_grad=True)
    y = film_kernels.conv_film(x, w, backend=backend)
    y.sum().backward()
    once = w.grad.clone()
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()
    film_kernels.conv_film(x, w, backend=backend).sum().backward()
    torch.testing.assert_close(w.grad, 2 * once)


@pytest.mark.parametrize("position", ["post", "pre"])
def test_frozen_convolution_with_trained_film(backend, position):
    x, w, b, gamma, beta = tensors_of(CASES[0], finest(backend))

    def gradients(backend):
        leaves = [x.clone().requires_grad_(), gamma.clone().requires_grad_(), beta.clone().requires_grad_()]
        y = film_kernels.conv_film(
            leaves[0], w, b, *leaves[1:], film_position=position, gamma_offset=1, backend=backend
        )
        y.square().sum().backward()
        return [leaf.grad for leaf in leaves]

    for found, expected in zip(gradients(backend), gradients("reference"), strict=True):
        assert_close(found / expected.abs().max(), expected / expected.abs().max())


def test_saved_tensors_changed_in_place_are_noticed(backend):
    x, w = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3, requires_grad=True)
    y = film_kernels.conv_film(x, w, backend=backend)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
