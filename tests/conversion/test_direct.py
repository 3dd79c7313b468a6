"""Chains whose scale and shift are gamma and beta as they stand become calls of the operators themselves; all others
are composed at every call. Either way the result is the model's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from film_kernels.conversion.folding import conv_steps_film, norm_steps_film
from film_kernels.conversion.swap import swap
from film_kernels.functional import conv_film, norm_film

OURS = {conv_film, norm_film, conv_steps_film, norm_steps_film}
SCALE, SHIFT = torch.randn(2, 8), torch.randn(2, 8)
MAPS = torch.randn(2, 8, 6, 6)


class Net(nn.Module):
    """What is called with a map, a scale and a shift, beside layers for it."""

    def __init__(self, formula, dtype=torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.formula = formula
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.GroupNorm(4, 8)
        self.rms = nn.RMSNorm(8)
        self.batch_norm = nn.BatchNorm2d(8).eval()
        self.scale = nn.Parameter(torch.randn(8, 1, 1))
        self.to(dtype)

    def forward(self, x, g, b):
        return self.formula(self, x, g, b)


def channels(t):
    return t[:, :, None, None]


DIRECT = {
    "norm, film, silu": lambda m, x, g, b: F.silu(m.norm(x) * (1 + channels(g)) + channels(b)),
    "norm, silu, film": lambda m, x, g, b: F.silu(m.norm(x)) * channels(g) + channels(b),
    "norm, scale, silu": lambda m, x, g, b: F.silu(m.norm(x) * channels(g)),
    "norm, shift": lambda m, x, g, b: m.norm(x) + channels(b),
    "norm, silu": lambda m, x, g, b: F.silu(m.norm(x)),
    "instance_norm, film": lambda m, x, g, b: F.instance_norm(x) * channels(g) + channels(b),
    "one scale for all samples": lambda m, x, g, b: F.relu(m.norm(x) * channels(g[:1]) + channels(b)),
    "without a dimension for samples": lambda m, x, g, b: F.relu(m.norm(x) * g[0][:, None, None] + channels(b)),
    "tokens": lambda m, x, g, b: m.rms(x.flatten(2).mT) * g[:, None] + b[:, None],
    "conv, film, relu": lambda m, x, g, b: F.relu(m.conv(x) * channels(g) + channels(b)),
    "conv, leaky_relu, film": lambda m, x, g, b: F.leaky_relu(m.conv(x), 0.2) * channels(g) + channels(b),
    "conv by its function": lambda m, x, g, b: F.conv2d(x, m.conv.weight, None, 2).relu() * channels(g),
}
COMPOSED = {
    "shift before scale": lambda m, x, g, b: F.silu((m.norm(x) + channels(b)) * channels(g)),
    "two scales": lambda m, x, g, b: F.silu(m.norm(x) * m.scale * channels(g)),
    "a number": lambda m, x, g, b: F.silu(m.norm(x) * 2 * channels(g)),
    "a quotient": lambda m, x, g, b: F.silu(m.norm(x) / (2 + channels(g).abs())),
    "a difference": lambda m, x, g, b: F.silu(m.norm(x) * channels(g) - channels(b)),
    "steps on both sides": lambda m, x, g, b: F.relu(m.conv(x) * m.scale) * channels(g) + channels(b),
    "batch_norm": lambda m, x, g, b: F.relu(m.batch_norm(m.conv(x))) * channels(g) + channels(b),
}


def run(formula, dtype=torch.float32, dynamic=False):
    """The result of the swapped graph, the model's own, and which of our functions the graph calls."""
    targets: list = []

    def backend(module, example_inputs):
        swap(module)
        targets.extend(node.target for node in module.graph.nodes if node.target in OURS)
        return module.forward

    model, inputs = Net(formula, dtype), [t.to(dtype) for t in (MAPS, SCALE, SHIFT)]
    torch._dynamo.reset()
    return torch.compile(model, backend=backend, dynamic=dynamic)(*inputs), model(*inputs), targets


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", DIRECT)
def test_is_called_directly(name, dynamic):
    if dynamic and name.startswith("instance"):
        pytest.skip("as many groups as channels, of which nobody knows the number")
    found, expected, targets = run(DIRECT[name], dynamic=dynamic)
    assert targets == [conv_film if name.startswith("conv") else norm_film]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", COMPOSED)
def test_is_composed(name):
    found, expected, targets = run(COMPOSED[name])
    assert len(targets) == 1 and targets[0] in (conv_steps_film, norm_steps_film)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_row_of_numbers_for_the_positions_is_no_gamma():
    """(N, C) beside (N, C, H, W) is a number for each position, where these are as many as samples and channels."""

    def formula(m, x, g, b):
        return F.silu(m.norm(x.repeat(1, 1, 1, 2)[:, :, :2, :8]) * g)

    found, expected, targets = run(formula)
    assert not targets
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_weights_wider_than_the_input_are_taken_as_they_are(weights):
    def formula(m, x, g, b):
        norm = F.group_norm(x, 4, m.norm.weight.to(weights), m.norm.bias.to(weights))
        return F.silu(norm * channels(g) + channels(b))

    found, expected, targets = run(formula, torch.bfloat16)
    assert targets == [norm_film] and found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def test_factors_of_another_dtype_are_composed():
    found, expected, targets = run(lambda m, x, g, b: F.silu(m.norm(x.float()) * channels(g.bfloat16())))
    assert targets == [norm_steps_film] and found.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
