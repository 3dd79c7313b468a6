"""Fused layers under adapters such as LoRA: a stand-in for the package peft, which wraps layers as it does."""

from __future__ import annotations

import copy
import io
import sys
import types

import pytest
import torch
from torch import Tensor, nn

from film_kernels import FusedFiLM, FusedFiLM1d, adapters
from film_kernels.activations import ACTIVATIONS

LAYERS = ((nn.Conv1d, FusedFiLM1d), (nn.Conv2d, FusedFiLM))
OPTIONS = ({}, {"activation": "silu", "film_position": "pre", "gamma_offset": 1.0})


class BaseTunerLayer:
    """What every adapter of peft is, whatever else it is."""


class LowRank(nn.Module, BaseTunerLayer):
    """Adds B(A(x)) to the output of its `base_layer`; A and B are made as layers of the type of that one."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        kind, rank = type(self.base_layer), 2
        self.down, self.up = nn.ModuleDict(), nn.ModuleDict()
        self.down["default"] = kind(
            base_layer.in_channels, rank, base_layer.kernel_size, base_layer.stride, base_layer.padding, bias=False
        )
        self.up["default"] = kind(rank, base_layer.out_channels, (1,) * len(base_layer.kernel_size), bias=False)

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        return self.base_layer(x, *args, **kwargs) + self.up["default"](self.down["default"](x)) * 0.7

    def merge(self) -> nn.Module:
        """The layer with the adapter's share in its weight."""
        up, down = (part["default"].weight.flatten(1) for part in (self.up, self.down))
        self.base_layer.weight.data += 0.7 * (up @ down).view_as(self.base_layer.weight)
        return self.base_layer


@pytest.fixture(autouse=True)
def peft(monkeypatch):
    """The one module of peft that is looked into."""
    module = types.ModuleType("peft.tuners.tuners_utils")
    module.BaseTunerLayer = BaseTunerLayer
    monkeypatch.setitem(sys.modules, module.__name__, module)


class Model(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
        return self.conv(x, gamma, beta=beta)


def plain(conv: nn.Module, x: Tensor, gamma: Tensor, beta: Tensor, options: dict) -> Tensor:
    """Activation and FiLM after `conv`, adapter or convolution."""
    act = ACTIVATIONS[options.get("activation", "relu")].apply
    gamma, beta = (t[(..., *(None,) * (x.dim() - 2))] for t in (gamma + options.get("gamma_offset", 0.0), beta))
    if options.get("film_position") == "pre":
        return act(gamma * conv(x) + beta, 0.01)
    return gamma * act(conv(x), 0.01) + beta


def tensors(rank: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(2, 4, *(9, 7)[:rank]), torch.randn(2, 8), torch.randn(2, 8)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("convolution", "fused"), LAYERS)
def test_activation_and_film_follow_the_adapter(convolution, fused, options):
    adapted, model = LowRank(convolution(4, 8, 3, padding=1)), Model(fused(4, 8, 3, padding=1, **options))
    model.conv = LowRank(model.conv)
    model.conv.load_state_dict(adapted.state_dict())
    x, gamma, beta = given = tensors(len(adapted.base_layer.kernel_size))
    y = model(*given)
    torch.testing.assert_close(y, plain(adapted, *given, options), rtol=1e-4, atol=1e-5)
    one = torch.autograd.grad(y.sum(), list(model.parameters()))
    other = torch.autograd.grad(plain(adapted, *given, options).sum(), list(adapted.parameters()))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(x[0], gamma[:1], beta[:1]), y[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("convolution", "fused"), LAYERS)
def test_a_merged_layer_is_the_fused_one_again(convolution, fused):
    layer = fused(4, 8, 3, padding=1, gamma_offset=1.0)
    model = Model(layer)
    before = tensors(len(layer.kernel_size))
    without = model(*before)
    model.conv = LowRank(layer)
    assert isinstance(layer, convolution) and not isinstance(layer, fused)
    y = model(*before)
    assert (y - without).abs().max() > 0.1
    model.conv = model.conv.merge()
    assert type(layer) is fused and model.conv is layer
    torch.testing.assert_close(model(*before), y, rtol=1e-4, atol=1e-5)


def test_an_adapted_model_is_copied_saved_and_compiled():
    model = Model(FusedFiLM(4, 8, 3, padding=1))
    model.conv = LowRank(model.conv)
    given = tensors(2)
    y = model(*given)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    saved = torch.load(file, weights_only=False)
    for other in (saved, copy.deepcopy(model), torch.compile(model, backend="eager", fullgraph=True)):
        torch.testing.assert_close(other(*given), y)


def test_what_cannot_be_right_is_refused():
    class Mine(FusedFiLM):
        """Somebody's own, of which nobody knows where FiLM stands."""

    with pytest.raises(TypeError, match=r"Mine cannot be the base layer of an adapter: .* film_kernels.fuse\(model\)"):
        LowRank(Mine(4, 8, 3))
    with pytest.raises(TypeError, match="an adapter around an adapter"):
        LowRank(LowRank(FusedFiLM(4, 8, 3)))


def test_a_layer_of_that_name_in_any_other_module_stays_fused():
    module = nn.Module()
    module.base_layer = FusedFiLM(4, 8, 3)
    assert type(module.base_layer) is FusedFiLM and not module._forward_hooks
    assert type(nn.Sequential(adapters.LentConv2d(4, 8, 3))[0]) is adapters.LentConv2d  # an adapter's own
