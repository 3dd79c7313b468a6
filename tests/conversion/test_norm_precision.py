"""Sites that norm_film serves, in each dtype and under autocast: as exact as the model was, in the dtypes it had."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from film_kernels import find_film
from film_kernels.conversion.compiler import film_kernels
from tests.helpers.conversion.equality import assert_as_good, assert_equal, counted_calls, fused_copy
from tests.helpers.conversion.norm_sites import WORDS, AdaLN, Llama, Sites, all_norms, draw, perturbed
from tests.helpers.conversion.published import GroupNorm32, K, tall


@pytest.mark.parametrize("training", [True, False])
def test_by_the_error_rule(training):
    model = perturbed(Sites(all_norms())).train(training)
    draws = [draw(seed=seed) for seed in range(3)]
    assert_as_good(model, fused_copy(model), draws)
    assert_equal(model.double(), fused_copy(model), draw(dtype=torch.float64))
    half = copy.deepcopy(model).bfloat16()
    assert_as_good(half, fused_copy(half), [draw(dtype=torch.bfloat16, seed=seed) for seed in range(3)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
def test_autocast_gives_the_dtypes_it_gave(training, dtype):
    model = perturbed(Sites(all_norms())).train(training)
    x, words = draw()
    fusable = sum(site.fusable for site in find_film(model, (x, words), norms=True))
    fused, exact = fused_copy(model), copy.deepcopy(model).double()(x.double(), words.double())
    with torch.autocast("cpu", dtype=dtype), counted_calls() as calls:
        found, expected = fused(x, words), model(x, words)
    assert len(calls) == fusable == 11
    assert [y.dtype for y in found] == [y.dtype for y in expected]
    for ours, plain, truth in zip(found, expected, exact, strict=True):
        least = torch.finfo(dtype).eps / 2 * truth.norm()
        assert (ours.double() - truth).norm() <= 2 * max((plain.double() - truth).norm(), least)
    sum(y.float().sum() for y in found).backward()
    sum(y.float().sum() for y in expected).backward()
    for (name, p), q in zip(fused.named_parameters(), model.parameters(), strict=True):
        assert p.grad.dtype == q.grad.dtype == torch.float32
        torch.testing.assert_close(p.grad, q.grad, rtol=0.1, atol=0.1 * float(q.grad.abs().max()), msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_norm_in_float32_within_a_model_of_16_bits(dtype):
    """As guided-diffusion has it: the norm's weights stay float32, and it converts its input and its result."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, K, 3, dtype=dtype), GroupNorm32(2, K)

        def forward(self, x, g, b):
            return F.silu(self.norm(self.conv(x)) * (1 + tall(g)) + tall(b))

    model = perturbed(Block())
    args = [torch.randn(shape).to(dtype) for shape in ((2, 3, 8, 7), (2, K), (2, K))]
    (site,) = find_film(model, tuple(args), norms=True)
    assert site.operator == "norm_film"
    graphs = []

    def backend(module, inputs):
        film_kernels(module, inputs, options={"backend": "eager"})
        graphs.append(module.graph)
        return module.forward

    found = torch.compile(model, backend=backend)(*args)
    assert not [node for node in graphs[0].nodes if node.target in ("float", "type")], "conversions are left"
    expected, exact = model(*args), copy.deepcopy(model).double()
    exact.norm.__class__ = nn.GroupNorm
    exact = exact(*(t.double() for t in args))
    assert found.dtype == expected.dtype == dtype
    assert (found.double() - exact).norm() <= 2 * (expected.double() - exact).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens(dtype):
    for norm, kind in (
        (nn.LayerNorm(K, elementwise_affine=False), "channel"),
        (nn.RMSNorm(K), "rms"),
        (Llama(), "rms"),
    ):
        model = perturbed(AdaLN(norm)).to(dtype)
        fused = fused_copy(model)
        draws = [[torch.randn(2, 6, K).to(dtype), torch.randn(2, WORDS).to(dtype)] for _ in range(3)]
        with counted_calls() as calls:
            fused(*draws[0])
        assert calls == [f"{kind.strip()} none pre"]
        assert_as_good(model, fused, draws)


def test_factors_that_float16_cannot_hold_together():
    class Gains(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.GroupNorm(2, K)

        def forward(self, x, g, h):
            g, h = tall(g), tall(h)
            return F.relu(self.norm(x) * g * h), F.relu(self.norm(x) * 1e-6 * g * h), F.mish(self.norm(x)) * g / h + g

    torch.manual_seed(0)
    model = Gains().half()
    args = [t.half() for t in (torch.randn(2, K, 5, 4), 300 + torch.rand(2, K), 300 + torch.rand(2, K))]
    with counted_calls() as calls:
        found = fused_copy(model)(*args)
    assert len(calls) == 3
    exact = copy.deepcopy(model).double()(*(t.double() for t in args))
    for ours, plain, truth in zip(found, model(*args), exact, strict=True):
        assert torch.equal(ours.isinf(), plain.isinf())
        at = plain.isfinite()
        ours, plain, truth = (t[at].double() for t in (ours, plain, truth))
        assert (ours - truth).norm() <= 2 * max((plain - truth).norm(), 2**-11 * truth.norm())
