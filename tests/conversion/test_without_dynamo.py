"""Where Dynamo is turned off, models run as they were and say so, and sites are found all the same."""

from __future__ import annotations

import contextlib
import copy
import warnings

import pytest
import torch
from torch import nn

from film_kernels import find_film
from film_kernels.conversion import dynamo
from tests.helpers.conversion.block import Block, block_inputs
from tests.helpers.conversion.equality import counted_calls, fused_copy
from tests.helpers.conversion.net import ARGS, Net
from tests.helpers.conversion.spellings import K, tall


@pytest.fixture(params=["TORCHDYNAMO_DISABLE", "set_stance", "config.disable"])
def off(request, monkeypatch):
    """Dynamo turned off, in each of the ways there are; gives a word of the way."""
    monkeypatch.setattr(dynamo, "_said", set())
    if request.param == "TORCHDYNAMO_DISABLE":
        monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
        yield request.param
    elif request.param == "set_stance":
        with torch.compiler.set_stance("force_eager"):
            yield request.param
    else:
        with torch._dynamo.config.patch(disable=True):
            yield request.param


def test_without_dynamo_a_model_runs_as_it_was_and_says_so(off):
    model, args = Block(), block_inputs()
    with pytest.warns(UserWarning, match=rf"{off}.*unfused"):
        fused = fused_copy(model)
    with counted_calls() as calls, warnings.catch_warnings():
        warnings.simplefilter("error")  # it was said once
        torch.testing.assert_close(fused(*args), model(*args))
    assert not calls


@pytest.mark.parametrize("way", ["set_stance", "config.disable"])
def test_dynamo_turned_off_for_a_while(monkeypatch, way):
    monkeypatch.setattr(dynamo, "_said", set())
    model, args = Block(), block_inputs()
    fused = fused_copy(model)
    stances = {"set_stance": lambda: torch.compiler.set_stance("force_eager")}
    turned_off = stances.get(way, lambda: torch._dynamo.config.patch(disable=True))
    messages = []
    for expected in (0, 1, 0, 1):
        with contextlib.nullcontext() if expected else turned_off(), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with counted_calls() as calls:
                found = fused(*args)
        assert len(calls) == expected
        torch.testing.assert_close(found, model(*args), rtol=1e-4, atol=1e-5)
        messages += [str(one.message) for one in said]
        torch._dynamo.reset()
    (message,) = messages
    assert way in message and "unfused" in message


def test_without_dynamo_sites_are_found_all_the_same(off):
    model, args = Block(), block_inputs()
    (site,) = find_film(model, args)
    assert (site.path, site.order, site.fusable) == ("conv", ("conv2d", "batch_norm", "film", "relu"), True)
    (site,) = find_film(model, dict(zip(("x", "e"), args, strict=True)))
    assert site.fusable and site.source

    class Branches(Net):
        def forward(self, x, g):
            return super().forward(x if x.sum() > 0 else -x, g)

    with pytest.raises(ValueError, match=rf"{off}.*turns off Dynamo.*cannot be traced"):
        find_film(Branches(), ARGS)


def test_shapes_are_known_without_dynamo(off):
    class Inline(Net):
        def forward(self, x, scale, shift):
            return self.conv(x) * scale + shift

    x, g = ARGS
    (site,) = find_film(Inline(), (x, tall(g), tall(g)))
    assert site.fusable
    (site,) = find_film(Inline(), (x, torch.randn(2, K, 8, 7), torch.randn(2, K, 8, 7)))
    assert not site.fusable and "varies over positions" in site.reason


def test_a_model_is_as_it_was_after_it_was_looked_at_without_dynamo(off):
    model = nn.Sequential(nn.Conv2d(3, K, 3), nn.BatchNorm2d(K), nn.Dropout(0.5))
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert find_film(model, ARGS[0]) == []
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
