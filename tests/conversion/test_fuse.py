"""`fuse`: the same outputs, gradients and names, with the sites in one call each and everything else as it was."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from film_kernels import find_film, fuse
from film_kernels.conversion.operations import convolution_of
from film_kernels.conversion.swap import swap
from tests.helpers.conversion import refusals
from tests.helpers.conversion.block import Block, block_inputs
from tests.helpers.conversion.equality import assert_as_good, assert_equal, counted_calls, fused_copy
from tests.helpers.conversion.spellings import SPELLINGS, K, Together, Written, inputs, tall


@pytest.fixture(scope="module")
def spelled():
    """All spellings in one model, as it is and fused, in float64."""
    torch.manual_seed(1)
    model = Together(Written(spelling) for spelling in SPELLINGS).double()
    return model, fused_copy(model)


def test_every_spelling_is_equal_and_one_call(spelled):
    model, fused = spelled
    with counted_calls() as calls:
        fused(*inputs())
    assert len(calls) == len(SPELLINGS)
    assert_equal(model, fused, inputs())


def test_nothing_is_left_of_what_was_swapped(spelled):
    graphs = []

    def backend(module, example_inputs):
        before = len(module.graph.nodes)
        assert len(swap(module)) == len(SPELLINGS)
        graphs.append(module.graph)
        assert len(module.graph.nodes) < before
        return module.forward

    torch.compile(spelled[0], backend=backend)(*inputs())
    (graph,) = graphs
    assert not [node for node in graph.nodes if convolution_of(node)]
    assert not [node for node in graph.nodes if node.op != "placeholder" and node.op != "output" and not node.users]


def test_by_the_error_rule():
    torch.manual_seed(1)
    chosen = ("gamma first", "silu", "activation last", "BatchNorm, FiLM, relu", "BatchNorm, relu, FiLM", "residual")
    model = Together(Written(s) for s in SPELLINGS if s.name in chosen)
    fused = fused_copy(model)
    assert_as_good(model, fused, [inputs(dtype=torch.float32, seed=seed) for seed in range(4)])
    model, fused = model.bfloat16(), fused.bfloat16()
    assert_as_good(model, fused, [inputs(dtype=torch.bfloat16, seed=seed) for seed in range(4)])


def test_what_is_refused_is_as_it_was():
    torch.manual_seed(1)
    no_dropout = [case for case in (*refusals.REFUSED, *refusals.NOT_FILM) if "dropout" not in case.name]
    model = Together(refusals.Refused(case) for case in no_dropout)
    fused = fuse(copy.deepcopy(model), norms=False)  # as what stands in front of a refused FiLM may be fused
    model.eval()
    with counted_calls() as calls:
        fused.train()
        results = fused(*inputs(dtype=torch.float32))
    assert not calls
    torch.testing.assert_close(results, model.train()(*inputs(dtype=torch.float32)))


def test_the_model_itself_is_fused():
    model = Block()
    plain, kind = copy.deepcopy(model), type(model)
    before = {name: [*items] for name, items in tables(model).items()}
    handle = model.register_forward_hook(lambda module, inputs, output: None)
    fused = fuse(model, block_inputs())
    assert fused is model and type(model) is kind and repr(model) == repr(plain)
    for name, items in tables(model).items():
        assert len(items) == len(before[name])
        assert all(a[0] == b[0] and a[1] is b[1] for a, b in zip(items, before[name], strict=True)), name
    assert list(model._forward_hooks) == [handle.id]
    assert inspect.signature(model.forward) == inspect.signature(plain.forward)
    assert inspect.getsource(model.forward) == inspect.getsource(plain.forward)
    assert model.forward.__self__ is model and model.forward.__name__ == "forward"
    with counted_calls() as calls:
        found = [model(*block_inputs()), model.forward(*block_inputs())]
        expected = plain(*block_inputs())
    assert calls == ["relu pre"] * 2
    torch.testing.assert_close(found, [expected] * 2, rtol=1e-4, atol=1e-5)


def tables(model):
    return {
        "parameters": list(model.named_parameters()),
        "buffers": list(model.named_buffers()),
        "modules": list(model.named_modules()),
    }


def test_a_fused_model_is_fused_again():
    model = Block()
    once = dict(fuse(model).__dict__)
    assert fuse(model) is model and model.__dict__ == once
    with counted_calls() as calls:
        model(*block_inputs())
    assert calls == ["relu pre"]


def test_sites_in_a_row_and_around_residuals():
    class Tower(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4))

        def forward(self, x, g, b):
            for conv in self.convs:
                x = x + tall(g) * conv(torch.relu(x)).tanh() + tall(b)
            return torch.relu(self.convs[0](torch.relu(self.convs[1](x)) * tall(g))) * tall(b)

    model = Tower().double()
    fused, args = fused_copy(model), [torch.randn(s, dtype=torch.float64) for s in ((2, 3, 6, 5), (2, 3), (2, 3))]
    with counted_calls() as calls:
        fused(*args)
    assert calls == ["tanh post"] * 4 + ["relu post"] * 2
    assert_equal(model, fused, args)


def test_control_flow_and_what_cannot_be_traced():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.seen = Block(), []

        def forward(self, x, e=None):
            self.seen.append(x.shape[0])
            if e is None:
                return x
            if x.sum().item() > 0:  # a graph break
                x = -x
            y = self.block(x, e)
            return y + torch.from_numpy(x.detach().numpy()).sum()

    model = Branches()
    fused, (x, e) = fused_copy(model), block_inputs()
    for sign in (1, -1):
        with counted_calls() as calls:
            found = fused(sign * x, e)
        assert calls == ["relu pre"]
        torch.testing.assert_close(found, model(sign * x, e))
    assert torch.equal(fused(x), x)
    assert model.seen == [2] * 2 and fused.seen == [2] * 3
    with pytest.raises(AttributeError, match="missing"):
        fused.missing  # noqa: B018


def test_numbers_that_change():
    class Strength(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, K, 3)

        def forward(self, x, g, strength):
            return F.relu(self.conv(x) * tall(g) * strength)

    model = Strength()
    fused, (x, g, *_) = fused_copy(model), inputs(dtype=torch.float32)
    for strength in (0.5, 1.5, 2.5):
        with counted_calls() as calls:
            torch.testing.assert_close(fused(x, g, strength), model(x, g, strength), rtol=1e-4, atol=1e-5)
        assert len(calls) == 1


def test_nothing_to_fuse():
    for model in (
        nn.Sequential(nn.Conv2d(3, K, 3), nn.ReLU()),
        nn.Sequential(nn.GroupNorm(1, 3), nn.Conv2d(3, K, 3), nn.GroupNorm(2, K), nn.PReLU()),
    ):
        args = torch.randn(1, 3, 5, 5)
        before = [dict(module.__dict__) for module in model.modules()]
        assert fuse(model, args) is model
        assert [dict(module.__dict__) for module in model.modules()] == before
    with pytest.raises(TypeError, match="model must be"):
        fuse("model")


def test_norms_without_film_are_an_option():
    model = nn.Sequential(nn.Conv2d(3, K, 3), nn.GroupNorm(2, K), nn.SiLU())
    x = torch.randn(2, 3, 7, 6)
    plain = copy.deepcopy(model)
    assert [site.operator for site in find_film(model, x, norms=True)] == ["norm_film"]
    assert find_film(model, x) == []
    before = dict(model.__dict__)
    assert fuse(model, x, norms=False).__dict__ == before
    for norms in (True, False, True):  # asked for anew
        fused = pickle.loads(pickle.dumps(fuse(model, norms=norms)))
        for one in (model, fused, copy.deepcopy(fused)):
            with counted_calls() as calls:
                torch.testing.assert_close(one(x), plain(x), rtol=1e-4, atol=1e-5)
            assert calls == ["group silu post"] * norms
