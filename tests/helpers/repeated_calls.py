"""Calls that are made again and again, by the short way and by all of it."""

from __future__ import annotations

import contextlib
from unittest import mock

import pytest
import torch

from film_kernels import arguments, conv_film, norm_arguments, norm_film, use_backend

K = 8
OPTIONS = {conv_film: {"padding": 1}, norm_film: {"num_groups": 4}}
FRONTS = pytest.mark.parametrize("front", OPTIONS, ids=lambda front: front.__name__)
NAMES = ("input", "weight", "bias", "gamma", "beta")


def leaves_of(front, rows=(2, K, 1, 1), dtype=torch.float32, shape=(2, K, 5, 6)):
    torch.manual_seed(0)
    weight = (K, K, 3, 3) if front is conv_film else (K,)
    return {
        name: torch.randn(size, dtype=dtype).requires_grad_()
        for name, size in zip(NAMES, (shape, weight, (K,), rows, rows), strict=True)
    }


@contextlib.contextmanager
def prepared():
    """The calls whose arguments were prepared: those that did not take the short way, or were the first of theirs."""
    counted = mock.Mock(return_value=None)

    def counting(prepare):
        return lambda *given: counted() or prepare(*given)

    with (
        mock.patch.object(arguments, "prepare", counting(arguments.prepare)),
        mock.patch.object(norm_arguments, "prepare", counting(norm_arguments.prepare)),
    ):
        yield counted


def all_the_way(front, leaves, **options):
    """y and the gradients by the long way, which a pin takes."""
    with use_backend("cpu"):
        return with_gradients(front, leaves, **options)


def with_gradients(front, leaves, **options):
    y = front(**leaves, **{**OPTIONS[front], **options})
    wanted = [leaf for leaf in leaves.values() if leaf is not None and leaf.requires_grad]
    return [y, *torch.autograd.grad(y, wanted, torch.ones_like(y))] if y.requires_grad else [y]


def check(front, leaves, exact=True, **options):
    """That three calls give what the long way gives."""
    expected = all_the_way(front, leaves, **options)
    for _ in range(3):
        for one, other in zip(with_gradients(front, leaves, **options), expected, strict=True):
            assert one.shape == other.shape and one.stride() == other.stride() and one.dtype == other.dtype
            assert torch.equal(one, other) if exact else torch.allclose(one, other)
