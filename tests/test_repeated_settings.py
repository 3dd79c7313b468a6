"""Calls like one before take a short way: what may have changed in between is asked for, and whoever watches sees the
operators that he knows."""

from __future__ import annotations

import contextlib
import gc
import warnings
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import film_kernels
from film_kernels import conv_film, repeated, use_backend
from film_kernels.backends import forget_choices
from tests.helpers.repeated_calls import (
    FRONTS,
    OPTIONS,
    K,
    all_the_way,
    check,
    leaves_of,
    prepared,
    with_gradients,
)


@pytest.fixture(autouse=True)
def nothing_remembered():
    forget_choices()
    assert not repeated._ways


@FRONTS
def test_what_is_set_in_between_is_asked_for(front, monkeypatch):
    leaves = leaves_of(front)
    expected = with_gradients(front, leaves)
    with use_backend("reference"), prepared() as counted:
        torch.testing.assert_close(with_gradients(front, leaves), expected)
        assert counted.called
    with pytest.raises(ValueError, match="backend"):
        front(**leaves, **OPTIONS[front], backend="nobody")
    monkeypatch.setenv("FILM_KERNELS_BACKEND", "nobody")
    with pytest.raises(ValueError, match="FILM_KERNELS_BACKEND"):
        front(**leaves, **OPTIONS[front])
    monkeypatch.delenv("FILM_KERNELS_BACKEND")
    with torch.autocast("cpu", torch.bfloat16):
        assert front(**leaves, **OPTIONS[front]).dtype is (torch.bfloat16 if front is conv_film else torch.float32)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert all(map(torch.equal, with_gradients(front, leaves), expected))
    finally:
        torch.set_num_threads(threads)
    forget_choices()
    with prepared() as counted:
        check(front, leaves)
        assert counted.called


@FRONTS
def test_modes_of_autograd(front):
    leaves, options = leaves_of(front), OPTIONS[front]
    for _ in range(2):
        assert front(**leaves, **options).requires_grad
        with torch.no_grad():
            assert not front(**leaves, **options).requires_grad
        with torch.inference_mode():
            assert front(**leaves, **options).is_inference()
        for name, leaf in leaves.items():
            alone = {other: t if other == name else t.detach() for other, t in leaves.items()}
            y = front(**alone, **options)
            (found,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
            torch.testing.assert_close(found, all_the_way(front, alone)[1])
        assert not front(**{name: leaf.detach() for name, leaf in leaves.items()}, **options).requires_grad
    with torch.inference_mode():
        constants = {name: leaf.clone() for name, leaf in leaves.items()}
    assert torch.equal(front(**constants, **options), front(**leaves, **options))


@FRONTS
def test_a_way_that_was_made_in_inference_mode_is_one_for_training(front):
    leaves = leaves_of(front)
    with torch.inference_mode():
        front(**leaves, **OPTIONS[front])
    check(front, leaves)


@FRONTS
def test_whoever_must_see_operators_sees_them(front):
    leaves = {name: leaf.detach() for name, leaf in leaves_of(front).items()}
    call = lambda input: front(**{**leaves, "input": input}, **OPTIONS[front])  # noqa: E731
    expected, x = call(leaves["input"]), leaves["input"]

    class Subclass(torch.Tensor):
        seen = 0

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            cls.seen += 1
            return super().__torch_function__(function, types, args, kwargs or {})

    class Seen(TorchDispatchMode):
        operators = ()

        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            self.operators = (*self.operators, str(operator))
            return operator(*args, **(kwargs or {}))

    for _ in range(2):
        with Seen() as seen:
            torch.testing.assert_close(call(x), expected)
        assert f"film_kernels.{front.__name__}.default" in seen.operators
        torch.testing.assert_close(torch.vmap(call)(x[None])[0], expected)
        y, tangent = torch.func.jvp(call, (x,), (torch.ones_like(x),))
        torch.testing.assert_close(y, expected)
        assert tangent.shape == y.shape
        torch.testing.assert_close(call(x.as_subclass(Subclass)).as_subclass(torch.Tensor), expected)
        assert Subclass.seen
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.testing.assert_close(torch.jit.trace(call, x)(x), expected)
        torch.testing.assert_close(torch.compile(call, backend="eager", fullgraph=True)(x), expected)
        assert torch.equal(call(x), expected)
        torch._dynamo.reset()


@FRONTS
def test_views_that_are_resolved_first(front):
    """A negative view has the shape and strides of the tensor, and another meaning."""
    leaves = {name: leaf.detach() for name, leaf in leaves_of(front).items()}
    expected = front(**leaves, **OPTIONS[front])
    for name, leaf in leaves.items():
        negative = torch._neg_view(-leaf)
        assert negative.is_neg()
        assert torch.equal(front(**{**leaves, name: negative}, **OPTIONS[front]), expected)


@FRONTS
@pytest.mark.parametrize("rows", [(2, K), (2, K, 1, 1), (K,)], ids=str)
def test_a_checkpoint_sees_the_same_at_the_first_call_and_later(front, rows):
    leaves = leaves_of(front, rows)
    y = checkpoint(lambda *given: front(*given), *_in_order(front, leaves), use_reentrant=False)
    torch.autograd.grad(y, list(leaves.values()), torch.ones_like(y))


def _in_order(front, leaves):
    given = list(leaves.values())
    return given if front is conv_film else (given[0], "group", 4, *given[1:])


@FRONTS
def test_the_second_derivative(front):
    leaves, options = leaves_of(front, dtype=torch.float64), {"activation": "silu"}
    found = []
    for way in (contextlib.nullcontext(), contextlib.nullcontext(), use_backend("cpu")):
        with way:
            y = front(**leaves, **{**OPTIONS[front], **options})
            first = torch.autograd.grad(y.square().sum(), list(leaves.values()), create_graph=True)
            found.append(torch.autograd.grad(sum(g.square().sum() for g in first), list(leaves.values())))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


@FRONTS
def test_a_freed_tensor_is_still_an_error(front):
    leaves = {name: leaf.detach() for name, leaf in leaves_of(front).items()}
    front(**leaves, **OPTIONS[front])
    leaves["gamma"].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"gamma .*freed or resized"):
        front(**leaves, **OPTIONS[front])


@FRONTS
def test_no_tensor_is_kept(front):
    leaves = leaves_of(front)
    with_gradients(front, leaves)
    assert repeated._ways
    left = [weakref.ref(leaf) for leaf in leaves.values()]
    del leaves
    gc.collect()
    assert all(tensor() is None for tensor in left)


def test_as_many_are_remembered_as_may_be(monkeypatch):
    monkeypatch.setattr(repeated, "_MOST", 5)
    leaves = leaves_of(conv_film)
    for number in range(20):
        conv_film(**leaves, negative_slope=number / 8)
        assert len(repeated._ways) <= 5


def test_layers_may_be_changed():
    layer = film_kernels.FusedFiLM(K, K, 3, padding=1)
    x, gamma, beta = torch.randn(2, K, 6, 6), torch.randn(2, K), torch.randn(2, K)
    assert layer(x, gamma, beta).shape == layer(x, gamma, beta).shape == (2, K, 6, 6)
    layer.stride = (2, 2)
    assert layer(x, gamma, beta).shape == (2, K, 3, 3)
    layer.activation = "none"
    y = layer(x, gamma, beta)
    expected = torch.conv2d(x, layer.weight, layer.bias, 2, 1) * gamma[:, :, None, None] + beta[:, :, None, None]
    torch.testing.assert_close(y, expected)
    layer.double()
    assert layer(x.double(), gamma.double(), beta.double()).dtype is torch.float64


@FRONTS
def test_what_a_transform_has_left_behind(front):
    leaves, left = leaves_of(front), {}

    def leak(input, gamma):
        left.update(input=input, gamma=gamma)
        return (input * gamma).sum()

    torch.func.grad(leak, argnums=(0, 1))(leaves["input"], leaves["gamma"])
    assert torch._C._functorch.is_functorch_wrapped_tensor(left["input"])
    expected = with_gradients(front, leaves)
    for given in (left, {name: tensor.detach() for name, tensor in left.items()}):
        for _ in range(2):
            y = front(**{**leaves, **given}, **OPTIONS[front])
            assert torch.equal(y, expected[0])
            y.sum().backward()
