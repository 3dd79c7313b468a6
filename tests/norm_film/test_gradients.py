"""Derivatives that are not a plain backward pass."""

from __future__ import annotations

import pytest
import torch

import film_kernels
from tests.helpers.norm_cases import FUNCTIONS, SERVING, Case, ours, plain, tensors_of

pytestmark = pytest.mark.usefixtures("one_thread")
NORMS = (
    ("group", 2, 1), ("group", 1, 1), ("group", 4, 1), ("batch", None, 1),
    *((norm, None, dim) for norm in ("channel", "rms", "l2") for dim in (1, -1)),
)  # fmt: skip


def _small(norm, groups, dim, activation="silu", position="pre", **options):
    shape = (2, 4, 3) if dim == 1 else (2, 3, 4)
    return Case(shape, norm, groups, activation, position, 1.0, 1e-2, dim, **options)


@pytest.mark.parametrize("position", ["pre", "post"])
@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_gradcheck_and_gradgradcheck(backend, norm, position):
    case = _small(*norm, position=position)
    leaves = [t.requires_grad_() for t in tensors_of(case)]
    call = lambda *leaves: ours(case, leaves, backend)  # noqa: E731
    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize("position", ["pre", "post"])
@pytest.mark.parametrize("activation", FUNCTIONS)
def test_gradcheck_of_every_activation(backend, activation, position):
    case = _small("group", 2, 1, activation, position)
    leaves = [t.requires_grad_() for t in tensors_of(case, 3)]
    assert torch.autograd.gradcheck(lambda *leaves: ours(case, leaves, backend), leaves, fast_mode=True)


def _related(how, leaves):
    """The five arguments, of which one depends on another."""
    x, w, b, gamma, beta = leaves
    mean = x.mean(2)
    return {
        "independent": (x, w, b, gamma, beta),
        "gamma made from the input": (x, w, b, gamma * mean, beta),
        "beta made from the input": (x, w, b, gamma, beta * mean),
        "beta made from gamma": (x, w, b, gamma, beta * gamma),
        "one tensor as gamma and beta": (x, w, b, gamma, gamma),
        "one vector as weight, bias and beta": (x, w, w, gamma, w),
        "one vector four times": (x, b, b, b, b),
        "input made from the weight": (x * w.mean(), w, b, gamma, beta),
    }[how]


@pytest.mark.parametrize("norm", [("group", 2, 1), ("batch", None, 1), ("rms", None, 1)], ids=str)
@pytest.mark.parametrize("position", ["pre", "post"])
@pytest.mark.parametrize("how", [
    "independent", "gamma made from the input", "beta made from the input", "beta made from gamma",
    "one tensor as gamma and beta", "one vector as weight, bias and beta", "one vector four times",
    "input made from the weight",
])  # fmt: skip
def test_create_graph_where_arguments_depend_on_one_another(how, position, norm):
    """Both derivatives, eagerly and by the registered operator; and a hook on an argument runs once a pass."""
    case = _small(*norm, position=position)

    def penalty(call):
        leaves = [t.requires_grad_() for t in tensors_of(case)]
        arguments = _related(how, leaves)
        calls = []
        for argument in arguments:
            argument.register_hook(lambda grad: calls.append(1))
        first = torch.autograd.grad(call(arguments).square().sum(), leaves, create_graph=True, allow_unused=True)
        once, first = len(calls), [t for t in first if t is not None]
        second = torch.autograd.grad(sum(t.square().sum() for t in first), leaves, allow_unused=True)
        return [*first, *(t for t in second if t is not None)], once

    def operator(name):
        def call(arguments):
            arguments = [*arguments[:3], *(t.expand(2, -1) for t in arguments[3:])]
            options = (norm[0], norm[1], case.eps, case.activation, 0.1, position, 1.0, 1, name, True)
            return torch.ops.film_kernels.norm_film(*arguments, *options)[0]

        return call

    expected, hooks = penalty(lambda arguments: plain(case, arguments))
    for name in SERVING:
        for call in (lambda arguments, name=name: ours(case, arguments, name), operator(name)):
            found, calls = penalty(call)
            assert calls == hooks
            torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_gradients_accumulate_and_the_graph_is_freed(backend):
    layer = film_kernels.NormFiLM(2, 4).double()
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    with film_kernels.use_backend(backend):
        y = layer(x)
        y.sum().backward()
        once = layer.weight.grad.clone()
        with pytest.raises(RuntimeError, match="second time"):
            y.sum().backward()
        layer(x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, 2 * once)


def test_a_graph_may_be_kept_and_used_again(backend):
    case = _small("group", 2, 1)
    leaves = [t.requires_grad_() for t in tensors_of(case)]
    y = ours(case, leaves, backend)
    first = torch.autograd.grad(y.square().sum(), leaves, retain_graph=True)
    again = torch.autograd.grad(y.square().sum(), leaves)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_a_layer_that_is_applied_twice(backend):
    results = []
    for name in (backend, "reference"):
        torch.manual_seed(5)
        layer, gamma = film_kernels.NormFiLM(2, 4, gamma_offset=1).double(), torch.randn(2, 4, dtype=torch.float64)
        x = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
        leaves = [x, gamma.requires_grad_(), *layer.parameters()]
        with film_kernels.use_backend(name):
            y = layer(layer(x, gamma, gamma), gamma, gamma)
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(t.square().sum() for t in first), leaves)
        results.append([*first, *second])
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-8)
