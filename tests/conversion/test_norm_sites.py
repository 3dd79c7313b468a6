"""Sites that norm_film serves: with hooks, of any size and layout, and compiled by Inductor."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from film_kernels import find_film, fuse
from film_kernels.conversion.compiler import film_kernels
from tests.helpers.conversion.equality import assert_as_good, assert_equal, counted_calls, fused_copy
from tests.helpers.conversion.norm_sites import Sites, all_norms, draw, perturbed
from tests.helpers.conversion.published import K, tall


def test_ranks_that_norm_film_does_not_have():
    class Ranks(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.group, self.batch = nn.LayerNorm(K), nn.GroupNorm(2, K), nn.BatchNorm1d(K)

        def forward(self, x, many):
            of_one = F.silu(self.layer(x[0])), F.relu(self.group(many)), F.silu(self.layer(many.movedim(1, -1)))
            return *of_one, F.silu(self.layer(x)), F.relu(self.group(x)), F.gelu(self.batch(x))

    model, args = perturbed(Ranks()), (torch.randn(4, K), torch.randn(2, K, 2, 2, 2, 2))
    assert [site.path for site in find_film(model, args, norms=True)] == ["layer", "group", "batch"]
    fused = fused_copy(model)
    torch.testing.assert_close(fused(*args), model(*args), rtol=1e-4, atol=1e-5)


def test_hooks_on_the_norm():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.GroupNorm(2, K)

        def forward(self, x, g):
            return F.silu(self.norm(x) * tall(g))

    model, x, g = Block(), torch.randn(2, K, 5, 4), torch.randn(2, K)
    fused = fused_copy(model)
    fused(x, g)
    seen: dict[int, list] = {id(model): [], id(fused): []}
    hooks = (
        lambda m, log: m.register_forward_hook(lambda _, i, o: log.append(o.detach().clone())),
        lambda m, log: m.register_forward_hook(lambda _, i, o: o * 2),
        lambda m, log: m.register_forward_pre_hook(lambda _, i: (i[0] + 1,)),
        lambda m, log: m.register_full_backward_hook(lambda _, i, o: log.append(o[0].clone())),
    )
    for register in hooks:
        results = []
        for one in (model, fused):
            handle = register(one.norm, seen[id(one)])
            leaf = x.clone().requires_grad_()
            y = one(leaf, g)
            results.append((y.detach(), *torch.autograd.grad(y.square().sum(), leaf)))
            handle.remove()
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(*seen.values(), rtol=1e-4, atol=1e-4)
    assert len(seen[id(model)]) == 2
    with counted_calls() as calls:
        fused(x, g)
    assert calls == ["group silu pre"]


def test_a_norm_that_is_called_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(K)

        def forward(self, x, g):
            for _ in range(2):
                x = F.relu(self.norm(x) * tall(g))
            return x

    model = Twice().double()
    fused = fused_copy(model)
    args = [torch.randn(shape, dtype=torch.float64) for shape in ((2, K, 5, 4), (2, K))]
    with counted_calls() as calls:
        fused(*args)
        model(*args)
    assert calls == ["batch relu pre"] * 2
    assert_equal(model, fused, args)
    torch.testing.assert_close(fused.state_dict(), model.state_dict())
    assert fused.norm.num_batches_tracked == 4


def test_sizes_change_without_end():
    model = perturbed(Sites(all_norms()))
    fused = fused_copy(model)
    for i in range(1, 12):
        args = draw(batch=1 + i % 5, size=6 + i)
        with counted_calls() as calls:
            torch.testing.assert_close(fused(*args), model(*args), rtol=1e-4, atol=1e-5)
        assert len(calls) == 11, i


@pytest.mark.parametrize("channels_last", [False, True])
def test_layouts_that_readers_rely_on(channels_last):
    """Behind a norm that gives back a contiguous tensor, `view` may stand."""

    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.group = nn.LayerNorm(K), nn.GroupNorm(2, K)

        def forward(self, x, g):
            h = x.permute(0, 2, 3, 1)
            tokens = F.silu(self.layer(h) * g[:, None, None])
            pictures = F.silu(self.group(x) * tall(g))
            back = F.silu(self.layer(h).permute(0, 3, 1, 2) * tall(g)).permute(0, 2, 3, 1)
            size = pictures.is_contiguous()
            return tokens.view(-1, K), back.view(-1, K), pictures.view(-1) if size else pictures

    x, g = torch.randn(2, K, 5, 4), torch.randn(2, K)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    model = Viewed()
    with counted_calls() as calls:
        found = fuse(copy.deepcopy(model))(x, g)
    assert len(calls) == 3
    torch.testing.assert_close(found, model(x, g), rtol=1e-4, atol=1e-5)


def test_inductor_trains_as_the_model_does():
    torch._dynamo.reset()
    model = perturbed(Sites({name: all_norms()[name] for name in ("group", "batch", "l2", "tokens")}))
    with counted_calls() as calls:
        assert_as_good(model, torch.compile(model, backend=film_kernels, fullgraph=True), [draw(), draw(seed=1)])
    assert {"group mish post", "batch silu pre", "l2 mish post", "rms silu pre", "group tanh post"} <= set(calls)


def test_norms_are_an_option_of_the_backend():
    model, x = nn.Sequential(nn.GroupNorm(2, K), nn.SiLU()), torch.randn(2, K, 5, 4)
    for norms in (True, False):
        torch._dynamo.reset()
        options = {"backend": "eager", "norms": norms}
        with counted_calls() as calls:
            found = torch.compile(model, backend=film_kernels, options=options)(x)
        assert len(calls) == norms
        torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-5)
