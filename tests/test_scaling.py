"""Depthwise convolutions of one tap, which only scale each channel: a pass over memory in place of a convolution."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from film_kernels import conv_film, find_film, fuse
from film_kernels.backends import BACKENDS
from film_kernels.backends.cpu_scaling import CpuScaling, is_scaling
from film_kernels.conversion.gain import convolution_alone
from tests.helpers.conversion.equality import counted_calls

C = 6


def leaves(rank, dtype=torch.float64, format=torch.contiguous_format):
    torch.manual_seed(rank)
    shapes = ((2, C, *((20,), (4, 5), (4, 5, 3))[rank - 1]), (C, 1, *(1,) * rank), (C,), (2, C), (2, C))
    x, *others = (torch.randn(shape, dtype=dtype) for shape in shapes)
    return [t.requires_grad_() for t in (x.contiguous(memory_format=format), *others)]


@pytest.mark.parametrize("changed", [{}, {"stride": 2}, {"padding": 1}, {"groups": 1}, {"weight": (C, 1, 3, 3)},
                                     {"weight": (2 * C, 1, 1, 1)}, {"side": 3}])  # fmt: skip
def test_which_they_are(changed):
    weight = torch.randn(changed.get("weight", (C, 1 if changed.get("groups", C) > 1 else C, 1, 1)))
    options = (changed.get("stride", 1), changed.get("padding", 0), 1, changed.get("groups", C))
    problem = convolution_alone(torch.randn(2, C, *[changed.get("side", 5)] * 2), weight, torch.float32, options)
    assert is_scaling(problem) == (not changed) == isinstance(BACKENDS["cpu"].of(problem), CpuScaling)


@pytest.mark.parametrize("position", ["post", "pre"])
@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu", "silu", "elu"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_as_the_convolution(rank, activation, position):
    tensors = leaves(rank)
    options = {"activation": activation, "film_position": position, "gamma_offset": 1.0, "groups": C}
    y = conv_film(*tensors, **options, backend="cpu")
    expected = conv_film(*tensors, **options, backend="reference")
    torch.testing.assert_close(y, expected)
    grad = torch.randn_like(y)
    found, wanted = (torch.autograd.grad(one, tensors, grad) for one in (y, expected))
    for one, other, tensor in zip(found, wanted, tensors, strict=True):
        torch.testing.assert_close(one, other)
        assert one.shape == tensor.shape and one.stride() == tensor.stride()


@pytest.mark.parametrize("given", range(8))
def test_what_is_not_there(given):
    tensors = leaves(2)
    some = [*tensors[:2], *(t if given >> at & 1 else None for at, t in enumerate(tensors[2:]))]
    y = conv_film(*some, groups=C, activation="silu", backend="cpu")
    expected = conv_film(*some, groups=C, activation="silu", backend="reference")
    there = [t for t in some if t is not None]
    found, wanted = (torch.autograd.grad(one.square().sum(), there) for one in (y, expected))
    torch.testing.assert_close((y, found), (expected, wanted))


def test_layouts_and_views():
    x, weight, *others = leaves(2, format=torch.channels_last)
    wide = torch.randn(C, 3, 2, 2, dtype=torch.float64)
    for w in (weight, wide[:, :1, :1, 1:], weight[:1].expand(C, 1, 1, 1)):
        y = conv_film(x, w, *others, groups=C, backend="cpu")
        assert y.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(y, conv_film(x, w, *others, groups=C, backend="reference"))


def test_a_bias_and_a_beta_may_be_written_to_before_backward():
    tensors = leaves(1)
    options = {"groups": C, "activation": "silu", "film_position": "pre"}
    wanted = torch.autograd.grad(conv_film(*tensors, **options, backend="cpu").sum(), tensors)
    y = conv_film(*tensors, **options, backend="cpu").sum()
    with torch.no_grad():
        tensors[2].zero_()
        tensors[4].zero_()
    torch.testing.assert_close(torch.autograd.grad(y, tensors), wanted)


def test_gradients_of_gradients():
    tensors = leaves(1)
    call = lambda *given: conv_film(*given, groups=C, activation="tanh", backend="cpu")  # noqa: E731
    assert torch.autograd.gradcheck(call, tensors) and torch.autograd.gradgradcheck(call, tensors)


def test_it_serves_by_itself_compiled_too():
    tensors = leaves(2, torch.float32)
    call = lambda: conv_film(*tensors, groups=C)  # noqa: E731
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(), call())
    torch.testing.assert_close(
        torch.autograd.grad(compiled().sum(), tensors), torch.autograd.grad(call().sum(), tensors)
    )


class Residual(nn.Module):
    """A block of a temporal convolutional network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.res = nn.Conv1d(C, C, 3, padding=1), nn.Conv1d(C, C, 1, groups=C, bias=False)

    def forward(self, x, gamma, beta):
        return F.relu(self.conv(x) * gamma[..., None] + beta[..., None]) + self.res(x)


@pytest.mark.judged
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_fuse_takes_them_with_the_other_convolutions(training, frozen):
    torch.manual_seed(0)
    model = Residual().double().train(training)
    inputs = tuple(torch.randn(shape, dtype=torch.float64) for shape in ((2, C, 500), (2, C), (2, C)))
    sites = find_film(model, inputs, convolutions=True)
    assert [site.path for site in sites if site.fusable and site.order == ("conv1d",)] == ["res"]
    fused = fuse(copy.deepcopy(model), convolutions=True, frozen=frozen)
    with torch.set_grad_enabled(training and not frozen), counted_calls() as calls:
        for _ in range(3):
            y = fused(*inputs)
    assert calls == ["relu pre", "none pre"] * 3
    torch.testing.assert_close(y, model(*inputs))
    if training and not frozen:
        found, wanted = (torch.autograd.grad(m(*inputs).square().sum(), list(m.parameters())) for m in (fused, model))
        torch.testing.assert_close(found, wanted)
