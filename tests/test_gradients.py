"""Derivatives that are not a plain backward pass, and the formulas of conv_film's one-bit backward themselves."""

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
from tests.helpers.subjects import CONV, GROUP, OTHER_NORMS, with_backends


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
def test_gradcheck_and_gradgradcheck(request, backend, position, activation, one_thread):
    interpreted = request.node.callspec.params["backend"] in INTERPRETED
    groups = 1 if backend == "triton" else 2
    case = Case(
        "small", (2, 2, 4, 3), (4, 2 // groups, 2, 2), stride=(2, 1), padding=(1, 0), groups=groups,
        activation=activation, film_position=position, gamma_offset=1.0,
    )  # fmt: skip
    tensors = _clear_of_the_kink(case)

    def call(*args):
        return film_kernels.conv_film(*args, *case.geometry, **case.options, backend=backend)

    # The interpreter takes long: there all differences are taken along one direction, in place of one for each element.
    assert torch.autograd.gradcheck(call, tensors, fast_mode=interpreted)
    if backend != "triton":  # the second derivative is the plain formula's, and the interpreter takes long to get there
        assert torch.autograd.gradgradcheck(call, tensors, fast_mode=interpreted)


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


RELATED = {
    "independent": lambda x, w, b, gamma, beta, mean: (x, w, b, gamma, beta),
    "gamma made from the input": lambda x, w, b, gamma, beta, mean: (x, w, b, gamma * mean, beta),
    "beta made from the input": lambda x, w, b, gamma, beta, mean: (x, w, b, gamma, beta * mean),
    "beta made from gamma": lambda x, w, b, gamma, beta, mean: (x, w, b, gamma, beta * gamma),
    "one tensor as gamma and beta": lambda x, w, b, gamma, beta, mean: (x, w, b, gamma, gamma),
    "one vector as bias and beta": lambda x, w, b, gamma, beta, mean: (x, w, b, gamma, b),
    "one vector three times": lambda x, w, b, gamma, beta, mean: (x, w, b, b, b),
    "weight made from gamma": lambda x, w, b, gamma, beta, mean: (x, w * gamma.mean(), b, gamma, beta),
    "input made from the weight": lambda x, w, b, gamma, beta, mean: (x * w.mean(), w, b, gamma, beta),
    "input made from the bias": lambda x, w, b, gamma, beta, mean: (x + b.sum(), w, b, gamma, beta),
}
OF_NORMS = {
    "one vector as weight, bias and beta": lambda x, w, b, gamma, beta, mean: (x, w, w, gamma, w),
    "one vector four times": lambda x, w, b, gamma, beta, mean: (x, b, b, b, b),
}


@pytest.mark.parametrize("position", ["post", "pre"])
@pytest.mark.parametrize(("subject", "how"), [
    *((subject, how) for subject in (CONV, GROUP) for how in RELATED),
    *((GROUP, how) for how in OF_NORMS),
    *((norm, how) for norm in OTHER_NORMS if norm.case.norm in ("batch", "rms") for how in (*RELATED, *OF_NORMS)),
], ids=str)  # fmt: skip
def test_create_graph_where_arguments_depend_on_one_another(subject, how, position):
    """Both derivatives, eagerly and by the registered operator; and a hook on an argument runs once a pass."""
    options = {"film_position": position, "gamma_offset": 1.0}

    def penalty(call):
        leaves = subject.leaves(torch.float64)
        mean = leaves[0].flatten(2).mean(2) @ torch.ones(leaves[0].shape[1], leaves[1].shape[0], dtype=torch.float64)
        arguments = {**RELATED, **OF_NORMS}[how](*leaves, mean)
        calls = []
        for argument in arguments:
            argument.register_hook(lambda grad: calls.append(1))
        first = torch.autograd.grad(call(arguments).square().sum(), leaves, create_graph=True, allow_unused=True)
        once, first = len(calls), [t for t in first if t is not None]
        second = torch.autograd.grad(sum(t.square().sum() for t in first), leaves, allow_unused=True)
        return [*first, *(t for t in second if t is not None)], once

    def eager(backend):
        return lambda tensors: subject.ours(tensors, backend, **options)

    def operator(backend):
        def call(tensors):
            rows = [t.expand(tensors[0].shape[0], -1) for t in tensors[3:]]
            arguments = subject.arguments([*tensors[:3], *rows], backend, **options)
            return subject.registered(**arguments, for_backward=True)[0]

        return call

    expected, hooks = penalty(lambda tensors: subject.plain(_as_rows(tensors), **options))
    for backend in EXPECTED:
        for call in (eager(backend), operator(backend)):
            found, calls = penalty(call)
            assert calls == hooks
            torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def _as_rows(tensors):
    """gamma and beta as (N, K), which the plain formulas of tests want."""
    return [*tensors[:3], *(t.expand(tensors[0].shape[0], -1) for t in tensors[3:])]


LAYERS = {
    "FusedFiLM": lambda: film_kernels.FusedFiLM(4, 4, 3, padding=1),
    "NormFiLM": lambda: film_kernels.NormFiLM(2, 4, gamma_offset=1),
}


@pytest.mark.parametrize(("name", "backend"), [
    ("FusedFiLM", "cpu"), *(("NormFiLM", backend) for backend in GROUP.keeping),
])  # fmt: skip
def test_create_graph_through_a_layer_that_is_applied_twice(name, backend):
    layers = [LAYERS[name]().double() for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    results = []
    for layer, used in zip(layers, (backend, "reference"), strict=True):
        generator = torch.Generator().manual_seed(5)
        x, gamma = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((2, 4, 6, 6), (2, 4)))
        leaves = [x.requires_grad_(), gamma.requires_grad_(), *layer.parameters()]
        with film_kernels.use_backend(used):
            y = layer(layer(x, gamma, gamma), gamma, gamma)
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(t.square().sum() for t in first), leaves)
        results.append([*first, *second])
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-8)


@with_backends()
def test_gradients_accumulate_and_the_graph_is_freed(subject, backend):
    x, w, *others = subject.tensors()
    w.requires_grad_()
    y = subject.ours([x, w, *others], backend)
    y.sum().backward()
    once = w.grad.clone()
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()
    subject.ours([x, w, *others], backend).sum().backward()
    torch.testing.assert_close(w.grad, 2 * once)


@with_backends()
def test_a_graph_may_be_kept_and_used_again(subject, backend):
    leaves = subject.leaves()
    y = subject.ours(leaves, backend)
    first = torch.autograd.grad(y.square().sum(), leaves, retain_graph=True)
    again = torch.autograd.grad(y.square().sum(), leaves)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


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
