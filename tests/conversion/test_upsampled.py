"""A convolution of a map that was enlarged by repeating its positions: four convolutions of the smaller map where the
kernels are faster so, and otherwise as it is."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from film_kernels import fuse, use_backend
from film_kernels.backends import BACKENDS
from film_kernels.conversion import upsampled
from film_kernels.conversion.upsampled import conv_of_upsampled
from tests.helpers.conversion.equality import assert_as_good

CONV = {1: F.conv1d, 2: F.conv2d}
SHAPES = {"2d": (2, 6, 5, 7), "2d, of one position": (1, 3, 1, 1), "1d": (3, 6, 8)}


def leaves_of(shape, channels_last=False):
    torch.manual_seed(0)
    rank = len(shape) - 2
    input = torch.randn(shape, dtype=torch.float64)
    if channels_last and rank == 2:
        input = input.contiguous(memory_format=torch.channels_last)
    others = (torch.randn(4, shape[1], *(3,) * rank, dtype=torch.float64), torch.randn(4, dtype=torch.float64))
    return [t.requires_grad_() for t in (input, *others)]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("channels_last", (False, True))
@pytest.mark.parametrize("has_bias", (False, True))
def test_output_and_gradients_of_two_orders(shape, channels_last, has_bias):
    leaves = leaves_of(shape, channels_last)[: 2 + has_bias]

    def plain(x, w, b=None):
        return CONV[w.dim() - 2](F.interpolate(x, scale_factor=2.0), w, b, padding=1)

    def ours(x, w, b=None):
        return conv_of_upsampled(x, w, b, packs=False, activation="none")

    found = []
    for function in (plain, ours):
        y = function(*leaves)
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        found.append([y, *first, *second])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a)
    if channels_last and len(shape) == 4:
        assert found[1][0].is_contiguous(memory_format=torch.channels_last) == (shape[2] > 1)


def test_packed_once_and_again_after_a_write():
    input, weight, bias = (leaf.detach() for leaf in leaves_of(SHAPES["2d"]))
    with torch.no_grad():
        for _ in range(2):
            for written in (weight, bias):
                for _ in range(2):
                    y = conv_of_upsampled(input, weight, bias, packs=True, activation="relu")
                    larger = F.interpolate(input, scale_factor=2.0)
                    torch.testing.assert_close(y, F.conv2d(larger, weight, bias, padding=1).relu())
                written.mul_(1.5)
    with use_backend("cpu"), pytest.raises(RuntimeError, match="frozen=True"):
        conv_of_upsampled(input, weight.requires_grad_(), bias, packs=True, activation="none").sum().backward()


class Up(nn.Module):
    def __init__(self, enlarge, **options) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enlarge, self.conv = enlarge, nn.Conv2d(64, 64, **{"kernel_size": 3, "padding": 1, **options})
        self.norm = nn.GroupNorm(4, 64)

    def forward(self, x):
        return F.silu(self.norm(self.conv(self.enlarge(x))))


def twice(x):
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def read_twice(x):
    return twice(x).add(1)


TAKEN = {
    "by a factor": Up(twice),
    "by a size": Up(lambda x: F.interpolate(x, (2 * x.shape[2], 2 * x.shape[3]), mode="nearest")),
    "by a module": Up(nn.Upsample(scale_factor=2)),
    "nearest-exact": Up(lambda x: F.interpolate(x, scale_factor=(2, 2), mode="nearest-exact")),
    "padding as a word": Up(twice, padding="same"),
    "without a bias": Up(twice, bias=False),
}
LEFT = {
    "written into in between": Up(lambda x: (twice(y := x + 0), y.mul_(2))[0]),
    "another factor": Up(lambda x: F.interpolate(x, scale_factor=3.0)),
    "nearly twice": Up(lambda x: F.interpolate(x, scale_factor=2.05)),
    "in one direction": Up(lambda x: F.interpolate(x, scale_factor=(2, 1))),
    "bilinear": Up(lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear")),
    "other taps": Up(twice, kernel_size=5, padding=2),
    "other padding": Up(twice, padding=0),
    "a stride": Up(twice, stride=2),
    "groups": Up(twice, groups=2),
    "between them": Up(read_twice),
}


@pytest.fixture
def calls(monkeypatch):
    """The calls of conv_of_upsampled, with a machine that is faster so in any size."""
    made = []
    real = upsampled.conv_of_upsampled
    monkeypatch.setattr(BACKENDS["cpu"].of(_problem()).__class__, "is_slow", lambda self, problem, use="alone": False)
    monkeypatch.setattr(upsampled, "has_little", lambda problem: False)

    def counted(*args, **kwargs):
        made.append(kwargs)
        return real(*args, **kwargs)

    monkeypatch.setattr(upsampled, "conv_of_upsampled", counted)
    return made


def _problem():
    from film_kernels.arguments import prepare

    tensors = (torch.randn(1, 2, 4, 4), torch.randn(2, 2, 3, 3), None, None, None)
    return prepare(tensors, (1, 0, 1, 1, "none", 0.01, "post", 0.0, "fast"))[0]


@pytest.mark.parametrize("name", [*TAKEN, *LEFT])
def test_models(calls, name):
    model = {**TAKEN, **LEFT}[name]
    for shape in ((2, 64, 6, 5), (1, 64, 9, 4)):
        x = torch.randn(shape)
        calls.clear()
        fused = fuse(copy.deepcopy(model), convolutions=True)
        assert_as_good(model, fused, [(x,)])
        assert bool(calls) == (name in TAKEN)
    with torch.no_grad():
        frozen = fuse(copy.deepcopy(model), convolutions=True, frozen=True).eval()
        for _ in range(2):
            torch.testing.assert_close(frozen(x), model(x), rtol=1e-4, atol=1e-5)


def test_without_the_wish_nothing_is_changed(calls):
    model = Up(twice)
    x = torch.randn(2, 64, 6, 5)
    torch.testing.assert_close(fuse(copy.deepcopy(model))(x), model(x), rtol=1e-4, atol=1e-5)
    assert not calls


def test_in_a_transform_it_is_as_it_was():
    input, weight, bias = (leaf.detach() for leaf in leaves_of(SHAPES["2d"]))
    ours = torch.func.vmap(lambda one: conv_of_upsampled(one, weight, bias, packs=False, activation="none"))
    plain = torch.func.vmap(lambda one: F.conv2d(F.interpolate(one, scale_factor=2.0), weight, bias, padding=1))
    torch.testing.assert_close(ours(input[:, None]), plain(input[:, None]))


def test_under_autocast_it_is_as_it_was():
    input, weight, bias = (leaf.detach().float() for leaf in leaves_of(SHAPES["2d"]))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        y = conv_of_upsampled(input, weight, bias, packs=False, activation="none")
        expected = F.conv2d(F.interpolate(input, scale_factor=2.0), weight, bias, padding=1)
    assert y.dtype is torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=0.05, atol=0.05)
