"""What `find_film` says of the patterns in which published models have FiLM, and what `fuse` makes of them."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from film_kernels import find_film, fuse
from film_kernels.conversion.compiler import film_kernels
from tests.helpers.conversion.equality import counted_calls, outputs_and_gradients
from tests.helpers.conversion.patterns import TABLE, Pattern
from tests.helpers.conversion.published import WORDS, C, K, N, group_norm, tall


@dataclass
class Inputs:
    picture: torch.Tensor
    other: torch.Tensor
    features: torch.Tensor  # a picture of K channels
    sequence: torch.Tensor
    volume: torch.Tensor
    tokens: torch.Tensor
    emb: torch.Tensor
    scale: torch.Tensor
    shift: torch.Tensor


class Model(nn.Module):
    def __init__(self, pattern: Pattern) -> None:
        super().__init__()
        self.conv, self.conv1d, self.conv3d = (kind(C, K, 3, padding=1) for kind in (nn.Conv2d, nn.Conv1d, nn.Conv3d))
        self.conv2d = self.conv
        self.linear, self.embed = nn.Linear(K, K), nn.Linear(WORDS, 2 * K)
        self.g, self.positions = nn.Parameter(torch.ones(K)), nn.Parameter(torch.zeros(1, 6, K))
        for name, module in pattern.modules().items():
            self.add_module(name, module)
        self.write = pattern.write

    def forward(self, picture, other, features, sequence, volume, tokens, emb):
        scale, shift = self.embed(F.silu(emb)).chunk(2, dim=1)
        given = Inputs(picture, other, features, sequence, volume, tokens, emb, scale, shift)
        return self.write(self, given)


class Together(nn.Module):
    """All patterns of a row on the same inputs: one capture serves them."""

    def __init__(self, patterns) -> None:
        super().__init__()
        self.parts = nn.ModuleList(map(Model, patterns))

    def forward(self, *inputs):
        return [part(*inputs) for part in self.parts]


def example_inputs():
    generator = torch.Generator().manual_seed(0)
    shapes = ((C, 9, 7), (C, 9, 7), (K, 9, 7), (C, 9), (C, 3, 5, 4), (6, K), (WORDS,))
    return tuple(torch.randn(N, *shape, generator=generator) for shape in shapes)


def model_of(row: str, mode: str) -> Together:
    torch.manual_seed(0)
    model = Together(TABLE[row])  # in training, but for what patterns freeze
    return model if mode == "training" else model.eval()


@functools.cache
def sites_of(row: str, mode: str) -> list:
    return find_film(model_of(row, mode), example_inputs(), norms=True)


@pytest.mark.parametrize("row", TABLE)
def test_what_is_said(row):
    patterns = TABLE[row]
    found: dict[int, list] = {i: [] for i in range(len(patterns))}
    for site in sites_of(row, "training"):
        found[int(site.path.split(".")[1])].append(site)
    said = [
        (pattern.spelling, *((" ".join(site.order), site.reason, site.operator) for site in found[i]))
        for i, pattern in enumerate(patterns)
    ]
    assert said == [(pattern.spelling, *expected_of(pattern)) for pattern in patterns]
    for sites in found.values():
        assert all(
            site.fusable == (site.reason is None) and "/tests/helpers/conversion/p" in site.source for site in sites
        )


def expected_of(pattern):
    """What is found: operations, the reason why it is not fused, the operator whose call it is."""
    for order, reason in ((pattern.order, pattern.reason), (pattern.also, None)):
        operator = None if reason else "norm_film" if "|" in order else "conv_film"
        if order:
            yield " ".join(order.replace("|", "").split()), reason, operator


@pytest.mark.parametrize("way", ["fuse", "torch.compile"])
@pytest.mark.parametrize("mode", ["training", "eval"])
@pytest.mark.parametrize("row", TABLE)
def test_results_are_what_they_were(row, mode, way):
    """Of everything, fused or not: values, gradients, running statistics, names."""
    model, inputs = model_of(row, mode), example_inputs()
    twin = copy.deepcopy(model)
    fusable = sum(site.fusable for site in sites_of(row, mode))
    torch._dynamo.reset()
    fused = fuse(twin) if way == "fuse" else torch.compile(twin, backend=film_kernels, options={"backend": "eager"})
    with counted_calls() as calls:
        torch.manual_seed(1)  # a dropout's
        found = outputs_and_gradients(fused, inputs)
    assert len(calls) == fusable
    torch.manual_seed(1)
    expected = outputs_and_gradients(model, inputs)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(twin.state_dict(), model.state_dict(), rtol=1e-5, atol=1e-6)


def test_arguments_by_name_in_a_symbolic_trace():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(C, K, 3), group_norm()

        def forward(self, x, g):
            return self.norm(input=self.conv(input=x)) * tall(g)

    (site,) = find_film(Named())
    assert site.order == ("conv2d", "group_norm", "scale") and site.operator == "norm_film"
