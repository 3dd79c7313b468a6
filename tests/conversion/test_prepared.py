"""Calls that are prepared at the first one: afterwards the short way is taken, with the same results as by the front
door, and what may have changed in between is asked for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from film_kernels import conv_film, fuse, norm_film, use_backend
from film_kernels.packed import conv_film_packed
from film_kernels.prepared import Prepared
from tests.helpers.conversion.equality import fused_copy

K = 8
ROWS = {
    "(N, K)": (2, K),
    "(N, K, 1, 1)": (2, K, 1, 1),
    "(1, K, 1, 1)": (1, K, 1, 1),
    "(1, K)": (1, K),
    "(K,)": (K,),
    "(K, 1, 1)": (K, 1, 1),
}


class Watched:
    """An operator's front, and how often it was called."""

    def __init__(self, front) -> None:
        self.count, self.front = 0, front

    def __call__(self, call, *tensors):
        inner = call._front
        call._front = self._counted
        try:
            return call(*tensors)
        finally:
            call._front = inner

    def _counted(self, *args, **kwargs):
        self.count += 1
        return self.front(*args, **kwargs)


def leaves_of(front, rows, requires_grad=True, channel_dim=1):
    torch.manual_seed(0)
    shape = (2, K, 5, 6) if channel_dim == 1 else (2, 5, 6, K)
    weight = (K, K, 3, 3) if front is not norm_film else (K,)
    return [torch.randn(s).requires_grad_(requires_grad) for s in (shape, weight, (K,), rows, rows)]


OPTIONS = {
    conv_film: {"padding": 1, "activation": "relu", "film_position": "pre"},
    norm_film: {"num_groups": 4, "activation": "silu"},
}
FRONTS = pytest.mark.parametrize("front", OPTIONS, ids=lambda front: front.__name__)


@FRONTS
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("recorded", (False, True))
def test_later_calls_give_what_the_front_door_gives(front, rows, recorded):
    leaves, options = leaves_of(front, rows), OPTIONS[front]
    call, watched = Prepared(front, options), Watched(front)
    names = ("input", "weight", "bias", "gamma", "beta")
    with torch.set_grad_enabled(recorded):
        expected = front(**dict(zip(names, leaves, strict=True)), **options)
        found = [watched(call, *leaves) for _ in range(3)]
    assert all(torch.equal(y, expected) for y in found)
    is_short = len(rows) != 1 and len(rows) != 3 and rows != (1, K)
    assert watched.count == (0 if is_short else 3)
    if recorded:
        grad = torch.randn_like(expected)
        want = torch.autograd.grad(expected, leaves, grad)
        for y in found:
            for a, b in zip(torch.autograd.grad(y, leaves, grad), want, strict=True):
                assert a.shape == b.shape
                torch.testing.assert_close(a, b)


@pytest.mark.parametrize("rows", ((2, 1, 1, K), (1, 1, 1, K)), ids=str)
def test_channels_that_come_last(rows):
    leaves = leaves_of(norm_film, rows, channel_dim=-1)
    options = {"norm": "rms", "channel_dim": -1}
    call = Prepared(norm_film, options)
    input, weight, bias, gamma, beta = leaves
    expected = norm_film(input, weight=weight, bias=bias, gamma=gamma, beta=beta, **options)
    want = torch.autograd.grad(expected.square().sum(), leaves)
    for _ in range(2):
        y = call(*leaves)
        assert torch.equal(y, expected)
        for a, b in zip(torch.autograd.grad(y.square().sum(), leaves), want, strict=True):
            torch.testing.assert_close(a, b)
            assert a.shape == b.shape


@FRONTS
def test_it_can_be_differentiated_twice(front):
    leaves = [leaf.detach().double().requires_grad_() for leaf in leaves_of(front, (2, K, 1, 1))]
    options = {**OPTIONS[front], "activation": "silu"}
    call = Prepared(front, options)
    call(*leaves)
    first = torch.autograd.grad(call(*leaves).square().sum(), leaves, create_graph=True)
    found = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
    y = front(**dict(zip(("input", "weight", "bias", "gamma", "beta"), leaves, strict=True)), **options)
    first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
    for a, b in zip(found, torch.autograd.grad(sum(g.square().sum() for g in first), leaves), strict=True):
        torch.testing.assert_close(a, b)


@FRONTS
def test_a_pin_and_autocast_are_asked_for_at_every_call(front, monkeypatch):
    leaves = leaves_of(front, (2, K, 1, 1), requires_grad=False)
    call, watched = Prepared(front, OPTIONS[front]), Watched(front)
    for _ in range(2):
        expected = watched(call, *leaves)
    assert watched.count == 0
    with use_backend("reference"):
        torch.testing.assert_close(watched(call, *leaves), expected)
    assert watched.count == 1
    monkeypatch.setenv("FILM_KERNELS_BACKEND", "nobody")
    with pytest.raises(ValueError, match="FILM_KERNELS_BACKEND"):
        watched(call, *leaves)
    monkeypatch.delenv("FILM_KERNELS_BACKEND")
    if front is conv_film:
        with torch.autocast("cpu", torch.bfloat16):
            assert watched(call, *leaves).dtype is torch.bfloat16
    assert torch.equal(watched(call, *leaves), expected)


def test_gradients_may_be_asked_for_later():
    """As in a checkpoint, whose body runs without a history first."""
    leaves = leaves_of(conv_film, (2, K, 1, 1))
    leaves[1].requires_grad_(False)  # then FiLM is a pass of its own, for dgamma
    call = Prepared(conv_film, OPTIONS[conv_film])
    with torch.no_grad():
        y = [call(*leaves) for _ in range(2)][-1]
    again = call(*leaves)
    torch.testing.assert_close(again.detach(), y)
    plain = F.relu(F.conv2d(*leaves[:3], padding=1) * leaves[3] + leaves[4])
    asked = [leaf for leaf in leaves if leaf.requires_grad]
    for a, b in zip(torch.autograd.grad(again.sum(), asked), torch.autograd.grad(plain.sum(), asked), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_packed_weight_that_is_written_to_is_packed_again():
    leaves = leaves_of(conv_film, (2, K, 1, 1), requires_grad=False)
    call = Prepared(conv_film_packed, OPTIONS[conv_film])
    with torch.no_grad():
        for _ in range(2):
            for change in (lambda w: w, lambda w: w.mul_(2), lambda w: w.data.set_(torch.randn_like(w))):
                change(leaves[1])
                torch.testing.assert_close(call(*leaves), conv_film(*leaves, **OPTIONS[conv_film]))
        leaves[1] = torch.randn(K, K, 3, 3)
        torch.testing.assert_close(call(*leaves), conv_film(*leaves, **OPTIONS[conv_film]))
    leaves[1].requires_grad_()
    with pytest.raises(RuntimeError, match="frozen=True"):
        call(*leaves).sum().backward()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(K, K, 3, padding=1), nn.GroupNorm(4, K)
        self.rows = nn.Linear(4, 2 * K)

    def forward(self, x, t):
        scale, shift = self.rows(t)[:, :, None, None].chunk(2, 1)
        return F.silu(self.norm(F.relu(self.conv(x) * scale + shift)) * (1 + scale) + shift)


class Checkpointed(Block):
    def forward(self, x, t):
        return checkpoint(super().forward, x, t, use_reentrant=False)


@pytest.mark.parametrize("kind", (Block, Checkpointed))
def test_models_of_them(kind):
    """In turn with and without gradients, of several sizes, which Dynamo makes symbolic."""
    model, t = kind(), torch.randn(2, 4)
    fused = fused_copy(model)
    for size in (6, 6, 9, 7, 6):
        x = torch.randn(2, K, size, 8, requires_grad=True)
        with torch.no_grad():
            torch.testing.assert_close(fused(x, t), model(x, t), rtol=1e-4, atol=1e-4)
        (theirs,) = torch.autograd.grad(model(x, t).square().sum(), x)
        for _ in range(2):
            (ours,) = torch.autograd.grad(fused(x, t).square().sum(), x)
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_a_fused_model_takes_the_short_way(monkeypatch):
    model, x, t = Block(), torch.randn(2, K, 6, 6), torch.randn(2, 4)
    fuse(model)
    with torch.no_grad():
        model(x, t)
        monkeypatch.setattr(Prepared, "_by_the_front", lambda self, tensors: pytest.fail("the long way"))
        model(x, t)
