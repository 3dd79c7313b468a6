"""What `find_film` says: every spelling of FiLM, with and without example inputs, and the reasons of refusals."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from film_kernels import Site, find_film
from tests.helpers.conversion import refusals, spellings
from tests.helpers.conversion.spellings import SPELLINGS, K, Together, Written, inputs, tall

NOT_TRACEABLE = {"view by sizes", "expand"}  # sizes that a symbolic trace does not know


def test_every_spelling_is_found():
    model = Together(Written(spelling) for spelling in SPELLINGS)
    sites = find_film(model, inputs(dtype=torch.float32))
    assert [(site.path, site.order, site.fusable, site.reason) for site in sites] == [
        (f"parts.{i}.conv", ("conv2d", *spelling.order), True, None) for i, spelling in enumerate(SPELLINGS)
    ]
    assert all(re.fullmatch(rf"{re.escape(spellings.__file__)}:\d+", site.source) for site in sites)


def test_every_reason():
    cases = (*refusals.REFUSED, *refusals.NOT_FILM)
    model = Together(refusals.Refused(case) for case in cases)
    sites = {site.path: site for site in find_film(model, inputs(dtype=torch.float32), norms=False)}
    for i, case in enumerate(cases):
        site = sites.pop(f"parts.{i}.m.conv", None)
        if not case.word:
            assert site is None, (case.name, site)
            continue
        assert site is not None, case.name
        assert not site.fusable and case.word in site.reason, (case.name, site)
    assert not sites


def test_without_example_inputs():
    for spelling in SPELLINGS:
        if spelling.name in NOT_TRACEABLE:
            with pytest.raises(ValueError, match="example_inputs must be given"):
                find_film(Written(spelling))
            continue
        (site,) = find_film(Written(spelling))
        assert site.path == "conv" and site.fusable and site.source, (spelling.name, site)
        assert site.order == ("conv2d", *spelling.order), spelling.name


def test_without_example_inputs_shapes_are_asked_for():
    class Inline(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, K, 3)

        def forward(self, x, scale, shift):
            return self.conv(x) * scale + shift

    (site,) = find_film(Inline())
    assert not site.fusable and "example_inputs" in site.reason
    x, g, b, _ = inputs(dtype=torch.float32)
    (site,) = find_film(Inline(), (x, tall(g), tall(b)))
    assert site.fusable


def test_what_cannot_be_traced_asks_for_example_inputs():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, K, 3)

        def forward(self, x, g, b):
            if x.sum() > 0:
                x = -x
            return F.relu(self.conv(x)) * tall(g) + tall(b)

    with pytest.raises(ValueError, match="example_inputs must be given"):
        find_film(Branches())
    x, g, b, _ = inputs(dtype=torch.float32)
    (site,) = find_film(Branches(), {"x": x, "g": g, "b": b})
    assert site.fusable and site.path == "conv"


def test_the_model_is_as_it_was_afterwards():
    model = nn.Sequential(nn.Conv2d(3, K, 3), nn.BatchNorm2d(K), nn.Dropout(0.5))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    assert find_film(model, inputs(dtype=torch.float32)[0]) == []
    assert torch.equal(torch.get_rng_state(), state) and model.training
    for name, t in model.state_dict().items():
        assert torch.equal(t, before[name]), name


def test_a_module_called_twice_has_two_sites():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x, g):
            for _ in range(2):
                x = F.relu(self.conv(x)) * tall(g)
            return x

    found = find_film(Twice(), (torch.randn(2, 3, 5, 5), torch.randn(2, 3)))
    assert [(site.path, site.order, site.fusable) for site in found] == [
        ("conv", ("conv2d", "relu", "scale"), True)
    ] * 2


def test_where_the_graph_is_cut():
    """A number read from a tensor cuts nothing; what does is said, and the FiLM behind it is listed all the same."""

    def printed(m, x, g, b):
        h = m.norm(m.conv(x))
        print(end="")
        return F.relu(h * tall(g) + tall(b))

    def branched(m, x, g, b):
        h = m.conv(x)
        if x.sum() > 0:
            b = b + 1
        return F.relu(h * tall(g) + tall(b))

    def read(m, x, g, b):
        h = m.conv(x)
        first, last = torch.tensor([1, 4]).tolist()
        scale = float(g.mean()) + torch.nonzero(g > 0).shape[0]
        return (h * tall(g) + tall(b))[:, first:last] * scale

    def only_a_residual(m, x, g, b):
        h = m.conv(x)
        print(end="")
        return F.relu(h) + x[:, :1, 2:, 2:]

    class Model(nn.Module):
        def __init__(self, write):
            super().__init__()
            self.conv, self.norm, self.write = nn.Conv2d(3, K, 3), nn.BatchNorm2d(K).eval(), write

        def forward(self, x, g, b, e):
            return self.write(self, x, g, b)

    def sites_of(write):
        return find_film(Model(write), inputs(dtype=torch.float32))

    (site,) = sites_of(printed)
    assert (site.path, site.order) == ("conv", ("conv2d", "batch_norm", "film", "relu"))
    assert not site.fusable and "cuts the graph" in site.reason
    (site,) = sites_of(branched)
    assert site.order == ("conv2d", "film", "relu") and "cuts the graph" in site.reason
    (site,) = sites_of(read)
    assert site.fusable and site.order[:2] == ("conv2d", "film")
    assert sites_of(only_a_residual) == []


def test_functional_convolutions_have_the_path_of_their_module():
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(K, 3, 3))

        def forward(self, x, g):
            return F.conv1d(x, self.weight) * g[:, :, None]

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

        def forward(self, x, g):
            return self.inner(x, g)

    (site,) = find_film(Outer(), (torch.randn(2, 3, 9), torch.randn(2, K)))
    assert site.path == "inner" and site.order == ("conv1d", "scale") and site.fusable


def test_arguments_are_checked():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got function"):
        find_film(lambda x: x)
    with pytest.raises(TypeError, match="example_inputs must be a tensor"):
        find_film(nn.Conv2d(3, 3, 3), 5)
    assert Site("a", "b:1", ("conv2d",), True) == Site("a", "b:1", ("conv2d",), True, None)
