"""The activations and their derivatives in Triton, held to twice PyTorch's own error against a wider type."""

import pytest
import torch
import triton
import triton.language as tl

from film_kernels.activations import ACTIVATIONS
from film_kernels.backends.triton.activate import activate, activation_gradient

_SLOPE = 0.3
_BLOCK = 4096


@triton.jit
def _both(g, v, value, gradient, SLOPE: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at = tl.load(v + i)
    tl.store(value + i, activate(at, SLOPE, ACTIVATION))
    tl.store(gradient + i, activation_gradient(tl.load(g + i), at, SLOPE, ACTIVATION))


def _ours(name: str, g: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    value, gradient = torch.empty_like(v), torch.empty_like(v)
    _both[(v.numel() // _BLOCK,)](g, v, value, gradient, _SLOPE, name, _BLOCK)
    return value, gradient


def _plain(name: str, g: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    row = ACTIVATIONS[name]
    return row.apply(v, _SLOPE), row.gradient(g, v, _SLOPE)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_float32_is_as_exact_as_pytorch_in_every_range(name):
    generator = torch.Generator().manual_seed(7)
    for largest in (1e-6, 1e-3, 0.05, 0.1, 0.2, 0.5, 1.0, 3.0, 10.0, 30.0, 200.0, 1e18):
        v = (2 * torch.rand(_BLOCK, generator=generator) - 1) * largest
        g = torch.randn(_BLOCK, generator=generator)
        exact = _plain(name, g.double(), v.double())
        for what, ours, plain, expected in zip(
            ("value", "gradient"), _ours(name, g, v), _plain(name, g, v), exact, strict=True
        ):
            error, allowed = (ours - expected).abs(), (plain - expected).abs()
            spacing = torch.finfo(torch.float32).eps * expected.abs().max()
            assert error.max() <= 2 * allowed.max() + spacing / 2, (what, largest)  # half a spacing: the rounding
            assert error.square().mean().sqrt() <= 2 * allowed.square().mean().sqrt() + spacing / 8, (what, largest)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_float64_is_pytorchs(name):
    v = torch.linspace(-30, 30, _BLOCK, dtype=torch.float64)
    g = torch.linspace(1, 2, _BLOCK, dtype=torch.float64)
    for ours, plain in zip(_ours(name, g, v), _plain(name, g, v), strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=2e-14)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_special_values_are_pytorchs_or_the_limit(name, dtype):
    """At infinity some of PyTorch's formulas are NaN, and the limit is as good an answer; at NaN leaky_relu has the
    derivative of the upper branch, as everywhere in this package."""
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e30, -1e30, 1e4, -1e4], dtype=dtype)
    v = special.repeat(_BLOCK // len(special) + 1)[:_BLOCK].contiguous()
    g = torch.full_like(v, 2.0)
    value, gradient = _plain(name, g, v)
    found_value, found_gradient = _ours(name, g, v)
    if name == "leaky_relu":
        gradient = torch.where(v.isnan(), g, gradient)
    value = torch.where(v.isposinf() & value.isnan() & ~found_value.isnan(), v, value)
    gradient = torch.where(v.isposinf() & gradient.isnan() & ~found_gradient.isnan(), g, gradient)
    for ours, expected in ((found_value, value), (found_gradient, gradient)):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-7, equal_nan=True)
