"""Factors of half precision, composed where their product has no place in it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from film_kernels import fuse
from tests.helpers.conversion.equality import counted_calls
from tests.helpers.conversion.spellings import tall

K = 16


def chains() -> dict[str, tuple[Callable, float, float, float]]:
    """A chain behind the convolution by name, and the sizes of input, g and h."""
    found: dict[str, tuple[Callable, float, float, float]] = {}
    for name, act in (("relu", F.relu), ("silu", F.silu), ("none", lambda v: v)):
        found.update({
            f"{name}, gains of 400": (lambda m, v, g, h, act=act: act(v) * g * h, 1e-3, 400, 400),
            f"{name}, small and a number": (lambda m, v, g, h, act=act: act(v) * g * h * 1e6, 10, 1e-4, 1e-4),
            f"{name}, gains before": (lambda m, v, g, h, act=act: act(v * g * h), 1e-3, 400, 400),
            f"{name}, numbers before": (lambda m, v, g, h, act=act: act(v * 400.0 * 400.0) * g, 1e-3, 1, 1),
            f"{name}, a number out of range": (lambda m, v, g, h, act=act: act(v) * 1e6 * g, 1e-3, 1e-3, 1),
            f"{name}, by a small gain": (lambda m, v, g, h, act=act: act(v) / g + h, 1e-3, 1e-5, 1),
            f"{name}, by two gains": (lambda m, v, g, h, act=act: act(v) / g / h, 1e-3, 1e-2, 1e-3),
            f"{name}, shift and scale": (lambda m, v, g, h, act=act: act((v - h) * g), 10, 1e3, 1),
        })  # fmt: skip
    return found


def norms() -> dict[str, Callable]:
    return {
        "norm, FiLM, relu": lambda m, v, g, h: F.relu(m.norm(v) * g + h),
        "norm, relu, FiLM": lambda m, v, g, h: F.relu(m.norm(v)) * g + h,
        "relu, norm, FiLM": lambda m, v, g, h: m.norm(F.relu(v)) * g + h,
        "FiLM, norm, relu": lambda m, v, g, h: F.relu(m.norm(v * g + h)),
    }


VARIANCES = ((0.0, 1e-7), (0.0, 1e-8), (1e-9, 1e-8), (1e6, 1e-5), (1.0, 1e-3))


class Chain(nn.Module):
    def __init__(self, write: Callable, variance: float = 1.0, eps: float = 1e-5) -> None:
        super().__init__()
        self.conv, self.norm, self.write = nn.Conv2d(8, K, 3, padding=1), nn.BatchNorm2d(K, eps=eps).eval(), write
        self.conv.weight.data.mul_(math.sqrt(variance + 1e-12))
        self.norm.running_var.fill_(variance)

    def forward(self, x: Tensor, g: Tensor, h: Tensor) -> Tensor:
        return self.write(self, self.conv(x), tall(g), tall(h))


class Chains(nn.Module):
    def __init__(self, parts: list[Chain]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, draws: list[tuple[Tensor, ...]]) -> list[Tensor]:
        return [part(*draw) for part, draw in zip(self.parts, draws, strict=True)]


def worst(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    """The greatest error of each, in parts of the greatest value."""
    return [
        float((a.double() - b).detach().abs().max() / b.detach().abs().max().clamp_min(1e-30))
        for a, b in zip(found, exact, strict=True)
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_plain_can_hold_is_as_good(dtype):
    torch.manual_seed(0)
    parts = {name: (Chain(chain), sizes) for name, (chain, *sizes) in chains().items()}
    for name, chain in norms().items():
        for variance, eps in VARIANCES:
            parts[f"{name}, {variance}, {eps}"] = Chain(chain, variance, eps), (1, 1, 1)
    draws = []
    for _, (size, g, h) in parts.values():
        shapes = ((2, 8, 12, 12), (2, K), (2, K))
        x, *factors = (torch.rand(shape) + 0.5 for shape in shapes)
        draws.append([t.to(dtype) for t in (size * torch.randn_like(x), g * factors[0], h * factors[1])])
    model = Chains([part for part, _ in parts.values()]).to(dtype)
    plain = copy.deepcopy(model)
    results = {}
    for kind, one in (("exact", copy.deepcopy(model).double()), ("plain", plain), ("fused", fuse(model))):
        leaves = [[t.to(torch.float64 if kind == "exact" else dtype).requires_grad_() for t in draw] for draw in draws]
        with counted_calls() as calls:
            outputs = one(leaves)
        sum(y.double().mean() for y in outputs).backward()
        results[kind] = outputs, [draw[1].grad for draw in leaves]
    assert len(calls) == len(parts)
    for i, what in enumerate(("output", "gradient of g")):
        errors = {kind: worst(results[kind][i], results["exact"][i]) for kind in ("plain", "fused")}
        for name, p, o in zip(parts, errors["plain"], errors["fused"], strict=True):
            if math.isfinite(p):
                limit = 2e-3 if dtype == torch.float16 else 1.6e-2
                assert o <= max(2 * p, limit), (name, what, p, o)


def test_autocast_leaves_the_composition_alone():
    class Gains(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.gain = nn.Conv2d(8, K, 3), nn.Linear(4, K)

        def forward(self, x, e):
            return F.relu(self.conv(x)) * tall(self.gain(e)) * tall(self.gain(e))

    torch.manual_seed(0)
    model = Gains()
    nn.init.constant_(model.gain.bias, 400)
    x, e = 1e-3 * torch.randn(2, 8, 6, 6), torch.randn(2, 4)
    plain, exact = copy.deepcopy(model), copy.deepcopy(model).double()(x.double(), e.double())
    fused = fuse(model)
    with torch.autocast("cpu", torch.float16), counted_calls() as calls:
        found, expected = fused(x, e), plain(x, e)
    assert len(calls) == 1 and found.dtype == expected.dtype == torch.float16
    ours, plains = worst([found, expected], [exact, exact])
    assert ours <= max(2 * plains, 2e-3)
