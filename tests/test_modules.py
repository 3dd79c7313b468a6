"""FusedFiLM as an nn.Conv2d, and the layers beside it."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from film_kernels import FiLM, FiLMGenerator, FusedFiLM, FusedFiLM1d

GAMMA, BETA = torch.randn(2, 8), torch.randn(2, 8)


def plain(conv: nn.Conv2d, x, gamma=GAMMA, beta=BETA):
    return gamma[:, :, None, None] * torch.relu(conv(x)) + beta[:, :, None, None]


@pytest.mark.parametrize("options", [
    {}, {"stride": 2, "padding": 1}, {"bias": False, "groups": 2}, {"padding": "same", "dilation": 2},
    {"padding": 2, "padding_mode": "reflect"}, {"padding": (1, 2), "padding_mode": "circular"},
    {"padding": "same", "padding_mode": "replicate"},
])  # fmt: skip
def test_takes_the_place_of_a_conv2d(options):
    torch.manual_seed(3)
    conv = nn.Conv2d(4, 8, 3, **options)
    torch.manual_seed(3)
    fused = FusedFiLM(4, 8, 3, **options)
    assert conv.state_dict().keys() == fused.state_dict().keys()
    for name, tensor in conv.state_dict().items():
        assert torch.equal(tensor, fused.state_dict()[name])  # the same initialisation
    fused.load_state_dict(conv.state_dict())
    x = torch.randn(2, 4, 9, 10)
    torch.testing.assert_close(fused(x, GAMMA, BETA), plain(conv, x), rtol=1e-4, atol=1e-5)
    assert isinstance(fused, nn.Conv2d)


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 2, "padding_mode": "circular"}, {"padding": "same"}])
def test_takes_the_place_of_a_conv1d(options):
    torch.manual_seed(3)
    conv = nn.Conv1d(4, 8, 3, **options)
    torch.manual_seed(3)
    fused = FusedFiLM1d(4, 8, 3, **options, activation="leaky_relu", film_position="pre", gamma_offset=1)
    assert {name: t.tolist() for name, t in conv.state_dict().items()} == {
        name: t.tolist() for name, t in fused.state_dict().items()
    }
    x = torch.randn(2, 4, 15)
    expected = nn.functional.leaky_relu((1 + GAMMA[:, :, None]) * conv(x) + BETA[:, :, None])
    for gamma, beta in ((GAMMA, BETA), (GAMMA[:, :, None], BETA[:, :, None])):
        torch.testing.assert_close(fused(x, gamma, beta), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fused(x[0], GAMMA[:1], BETA[:1]), expected[0], rtol=1e-4, atol=1e-5)
    assert isinstance(fused, nn.Conv1d) and "gamma_offset=1.0" in repr(fused)
    with pytest.raises(ValueError, match="activation"):
        FusedFiLM1d(4, 8, 3, activation="tanhh")


def test_prints_its_options():
    text = repr(
        FusedFiLM(3, 10, 3, stride=2, activation="leaky_relu", negative_slope=0.2, film_position="pre", gamma_offset=1)
    )
    assert "3, 10, kernel_size=(3, 3), stride=(2, 2)" in text
    assert "activation='leaky_relu', film_position='pre', negative_slope=0.2, gamma_offset=1.0" in text


def test_copies_pickles_saves_and_moves():
    layer, x = FusedFiLM(4, 8, 3, gamma_offset=1), torch.randn(2, 4, 6, 6)
    expected = layer(x, GAMMA, BETA)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)):
        assert torch.equal(other(x, GAMMA, BETA), expected)
    double = copy.deepcopy(layer).to(torch.float64)
    assert double(x.double(), GAMMA.double(), BETA.double()).dtype == torch.float64
    last = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(x, GAMMA, BETA), expected)
    meta = FusedFiLM(4, 8, 3, device="meta")
    assert meta(x.to("meta"), GAMMA.to("meta"), BETA.to("meta")).shape == expected.shape


@pytest.mark.parametrize(("options", "error"), [
    ({"activation": "tanhh"}, ValueError), ({"film_position": "after"}, ValueError), ({"gamma_offset": "1"}, TypeError),
    ({"negative_slope": None}, TypeError),
])  # fmt: skip
def test_options_are_checked_when_it_is_made(options, error):
    if error is None:
        assert FusedFiLM(3, 4, 3, **options).gamma_offset == 1.0
        return
    with pytest.raises(error, match=next(iter(options))):
        FusedFiLM(3, 4, 3, **options)


def test_gamma_and_beta_may_be_left_out():
    conv = FusedFiLM(4, 8, 3)
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(conv(x), torch.relu(nn.Conv2d.forward(conv, x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", [
    parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal,
    lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5),
])  # fmt: skip
def test_weights_can_be_reparametrised_and_pruned(change):
    fused = FusedFiLM(4, 8, 3, padding=1)
    conv = nn.Conv2d(4, 8, 3, padding=1)
    conv.load_state_dict(fused.state_dict())
    for layer in (fused, conv):
        torch.manual_seed(1)  # the iteration of a spectral norm begins by lot
        change(layer)
    assert fused.state_dict().keys() == conv.state_dict().keys()
    x = torch.randn(2, 4, 9, 10)
    y, expected = fused(x, GAMMA, BETA), plain(conv, x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    one, other = (
        torch.autograd.grad(t.square().sum(), list(m.parameters())) for t, m in ((y, fused), (expected, conv))
    )
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_trains_as_the_plain_network_does():
    torch.manual_seed(0)
    generator, conv = FiLMGenerator(5, 8), nn.Conv2d(3, 8, 3)
    fused = FusedFiLM(3, 8, 3)
    fused.load_state_dict(conv.state_dict())
    twin = copy.deepcopy(generator)
    x, words, target = torch.randn(6, 3, 12, 12), torch.randn(6, 5), torch.randn(6, 8, 10, 10)
    film = FiLM()
    losses = []
    for parts, forward in (
        ((conv, generator), lambda: film(torch.relu(conv(x)), *generator(words))),
        ((fused, twin), lambda: fused(x, *twin(words))),
    ):
        optimizer = torch.optim.Adam([p for part in parts for p in part.parameters()], lr=1e-2)
        losses.append([])
        for _ in range(20):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(forward(), target)
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0][-1] < losses[0][0]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)


def test_generator_gives_gamma_first():
    generator = FiLMGenerator(5, 8)
    words = torch.randn(3, 5)
    gamma, beta = generator(words)
    assert gamma.shape == beta.shape == (3, 8)
    assert torch.equal(torch.cat([gamma, beta], 1), generator.linear(words))
