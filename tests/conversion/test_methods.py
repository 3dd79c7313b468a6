"""Methods beside forward that hold a convolution with its FiLM."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from film_kernels import fuse
from tests.helpers.conversion.equality import counted_calls, fused_copy
from tests.helpers.conversion.spellings import K, tall


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, K, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        self.stem = nn.Sequential(nn.Conv2d(3, K, 3, padding=1), nn.ReLU())
        self.weight = nn.Parameter(torch.randn(K, 3, 3, 3))
        self.reset()

    def reset(self):
        for conv in self.convs:
            nn.init.ones_(conv.weight)

    def first(self):
        return self.convs[0].weight.sum() if self.conv.bias is None else self.conv.weight

    def layers(self):
        return [self.conv, *self.convs]

    def forward(self, x, g):
        return self.encode(x, g).mean((2, 3))

    def encode(self, x, g):
        return F.relu(self.conv(x)) * tall(g)

    @torch.no_grad()
    def embed(self, x, g):
        return F.relu(self.conv(x)) * tall(g)

    def listed(self, x, g):
        for conv in self.convs:
            x = F.relu(conv(x)) * tall(g[:, :3])
        return x

    def through(self, x, g):
        return self.stem(x) * tall(g)

    def functional(self, x, g):
        return F.conv2d(x, self.weight) * tall(g)

    def _private(self, x, g):
        return self.conv(x) * tall(g)

    def calls_private(self, x, g):
        return self._private(x, g) + 1

    def calls_forward(self, x, g):
        return self.forward(x, g) + self(x, g)

    def by_name(self, x, g):
        return getattr(self, "co" + "nv")(x) * tall(g)

    @torch.compiler.disable
    def kept_as_it_is(self, x, g):
        return self.conv(x) * tall(g)

    def sample(self, x, g, steps=3):
        for _ in range(steps):
            x = x + (self.conv(x) * tall(g)).mean(1, keepdim=True)
        return x

    def parts(self, x, g):
        yield self.conv(x) * tall(g)

    @property
    def last(self):
        return self.conv

    @classmethod
    def make(cls):
        return cls()


class Derived(Base):
    def encode(self, x, g):
        return super().encode(x, g) * 2


CALLS = {
    "forward": 1, "encode": 1, "embed": 1, "listed": 2, "through": 1, "functional": 1, "_private": 1,
    "calls_private": 1, "calls_forward": 2, "by_name": 0, "kept_as_it_is": 0, "sample": 0,
}  # fmt: skip
ARGS = torch.randn(2, 3, 8, 7), torch.randn(2, K)


def check(fused, model, name, calls):
    with counted_calls() as counted:
        found = getattr(fused, name)(*ARGS)
    assert len(counted) == calls, name
    torch.testing.assert_close(found, getattr(model, name)(*ARGS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [Base, Derived])
def test_methods_that_call_a_convolution_of_their_own(kind):
    model = kind()
    fused = fused_copy(model)
    for name, calls in CALLS.items():
        check(fused, model, name, calls)
    for name in ("parts", "first", "reset", "last", "make"):
        assert name not in fused.__dict__
    assert fused.layers() == [fused.conv, *fused.convs]
    torch.testing.assert_close(next(fused.parts(*ARGS)), next(model.parts(*ARGS)))


def test_methods_that_are_named():
    model = nn.ModuleDict({"net": Base()})
    fused = fuse(copy.deepcopy(model), methods=("net.by_name",))
    check(fused["net"], model["net"], "by_name", 1)
    other = copy.deepcopy(fused["net"])
    nn.init.ones_(other.conv.weight)
    nn.init.ones_(model["net"].conv.weight)
    check(other, model["net"], "by_name", 1)
    check(other, model["net"], "encode", 1)
    for kind in (list, set):
        assert "by_name" in fuse(Base(), methods=kind(("by_name",))).__dict__


@pytest.mark.parametrize("name", ["missing", "net.missing", "net.missing.encode", "train", "last", "make", "__call__"])
def test_names_of_no_method(name):
    model = Base()
    model.net = Base()
    before = dict(model.__dict__)
    with pytest.raises(ValueError, match=f"methods: '{name}' is no method"):
        fuse(model, methods=(name,))
    assert model.__dict__ == before


@pytest.mark.parametrize("methods", ["encode", 3, None, (3,)])
def test_what_are_no_names(methods):
    with pytest.raises(TypeError, match="methods must be"):
        fuse(Base(), methods=methods)


def test_named_methods_are_fused_where_forward_has_nothing():
    class Nothing(Base):
        def forward(self, x, g):
            return x

    model = Nothing()
    assert "forward" not in fuse(model, ARGS).__dict__ and "encode" not in model.__dict__
    plain = copy.deepcopy(model)
    check(fuse(model, ARGS, methods=("encode",)), plain, "encode", 1)
