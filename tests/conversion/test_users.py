"""Models of real users: packages as they are on PyPI, and blocks after published ones.

For each: what `find_film` says in training and in eval, outputs and gradients before and after `fuse`, and a short
training run that ends at the same loss.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
import torchcontrib
from torch import nn

from film_kernels import find_film
from tests.helpers.conversion.equality import assert_as_good, counted_calls, fused_copy
from tests.helpers.conversion.spellings import batch_norm

WORDS = 5


@pytest.fixture(scope="module")
def tcn():
    """nablafx's TCN, from the two files that it is in: the package around them wants torchaudio and more."""
    before = dict(sys.modules)
    location = importlib.util.find_spec("nablafx").submodule_search_locations[0]
    for name, path in (("nablafx", location), ("nablafx.processors", f"{location}/processors")):
        sys.modules[name] = package = types.ModuleType(name)
        package.__path__ = [path]
    sys.modules["rational"], sys.modules["rational.torch"] = types.ModuleType("rational"), types.ModuleType("torch")
    sys.modules["rational.torch"].Rational = None  # an activation that is not used here
    yield importlib.import_module("nablafx.processors.tcn").TCN
    for name in set(sys.modules) - set(before):
        del sys.modules[name]


class Contrib(nn.Module):
    """torchcontrib.nn.FiLM behind a convolution and a relu."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.film = nn.Conv2d(3, 6, 3), torchcontrib.nn.FiLM()
        self.gamma, self.beta = nn.Linear(WORDS, 6), nn.Linear(WORDS, 6)

    def forward(self, x, words):
        return self.film(F.relu(self.conv(x)), self.gamma(words), self.beta(words))


class Clevr(nn.Module):
    """The residual block of Perez et al. (2018): 1x1 and relu, 3x3, BatchNorm without affine, FiLM, relu, sum."""

    def __init__(self) -> None:
        super().__init__()
        channels = 6
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.film = nn.Linear(WORDS, 2 * channels)
        self.proj = nn.Conv2d(channels, channels, 1)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = batch_norm(affine=False)

    def forward(self, x, words):
        gammas, betas = self.film(words).chunk(2, dim=1)
        gammas = 1.0 + gammas
        x = F.relu(self.proj(self.stem(x)))
        y = self.norm(self.conv(x))
        gammas = gammas.unsqueeze(2).unsqueeze(3).expand_as(y)
        betas = betas.unsqueeze(2).unsqueeze(3).expand_as(y)
        return x + F.relu((gammas * y) + betas)


class BabyAI(nn.Module):
    """The FiLM block of BabyAI (Chevalier-Boisvert et al., 2019): FiLM before the second BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 6, 3, padding=1), batch_norm()
        self.conv2, self.norm2 = nn.Conv2d(6, 6, 3, padding=1), batch_norm()
        self.weight, self.bias = nn.Linear(WORDS, 6), nn.Linear(WORDS, 6)

    def forward(self, x, y):
        x = F.relu(self.norm1(self.conv1(x)))
        x = self.conv2(x)
        out = x * self.weight(y).unsqueeze(2).unsqueeze(3) + self.bias(y).unsqueeze(2).unsqueeze(3)
        return F.relu(self.norm2(out))


class ShiftScale(nn.Module):
    """WaveGrad's order (Chen et al., 2021), shift before scale and both from one layer, with one value a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.film = nn.Conv1d(3, 6, 3, padding=2, dilation=2), nn.Linear(WORDS, 12)

    def forward(self, x, noise):
        shift, scale = torch.chunk(self.film(noise)[:, :, None], 2, dim=1)
        return F.leaky_relu(shift + scale * self.conv(x), 0.2)


class WaveGrad(nn.Module):
    """WaveGrad itself: shift and scale come from the spectrogram, and vary over time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.film = nn.Conv1d(3, 6, 3, padding=1), nn.Conv1d(3, 12, 3, padding=1)
        self.noise = nn.Linear(WORDS, 3)

    def forward(self, x, noise):
        shift, scale = torch.chunk(self.film(x + self.noise(noise)[:, :, None]), 2, dim=1)
        return F.leaky_relu(shift + scale * self.conv(x), 0.2)


class ScaleShiftResnet(nn.Module):
    """A ResNet block of diffusion models with `scale_shift`: GroupNorm, (1 + s) x + t, silu, and a plain shift."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(1, 3), nn.Conv2d(3, 6, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(2, 6), nn.Conv2d(6, 3, 3, padding=1)
        self.time = nn.Linear(WORDS, 12)

    def forward(self, x, words):
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.time(F.silu(words))[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        return x + self.conv2(F.silu(h))


@dataclass(frozen=True)
class User:
    """`found`: (path, operations, operator that serves them) in eval; `in_training`: the same, or a word of the reason
    in place of the operator."""

    make: Callable[[], nn.Module]
    found: tuple[tuple[str, str, str], ...]
    in_training: tuple[tuple[str, str, str], ...]
    spatial: tuple[int, ...] = (8, 7)


USERS = (
    User(Contrib, *[(("conv", "conv2d relu film", "conv_film"),)] * 2),
    User(Clevr, (("conv", "conv2d batch_norm film relu", "conv_film"),),
         (("conv", "conv2d batch_norm film relu", "norm_film"),)),
    User(BabyAI, (("norm1", "batch_norm relu", "norm_film"), ("conv2", "conv2d film batch_norm relu", "conv_film")),
         (("norm1", "batch_norm relu", "norm_film"), ("conv2", "conv2d film", "conv_film"),
          ("norm2", "batch_norm relu", "norm_film"))),
    User(ShiftScale, *[(("conv", "conv1d film leaky_relu", "conv_film"),)] * 2, (30,)),
    User(WaveGrad, *[(("conv", "conv1d film", "varies over positions"),)] * 2, (30,)),
    User(ScaleShiftResnet, *[(("norm1", "group_norm silu", "norm_film"),
                              ("conv1", "conv2d group_norm film silu", "norm_film"))] * 2),
)  # fmt: skip


def arguments(spatial, seed: int = 0, batch: int = 4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, *spatial, generator=generator), torch.randn(batch, WORDS, generator=generator)


def losses(model: nn.Module, args, steps: int = 12) -> list[float]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    target = torch.randn(model(*args).shape, generator=torch.Generator().manual_seed(3))
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.mse_loss(model(*args), target)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def check(model: nn.Module, fusable: int, draws) -> None:
    """Outputs and gradients by the error rule, as many fused calls as fusable sites, and a training run."""
    fused = fused_copy(model)
    with counted_calls() as calls:
        fused(*draws[0])
    assert len(calls) == fusable
    assert_as_good(model, fused, draws)
    expected = losses(copy.deepcopy(model), draws[0])
    assert expected[-1] < 0.95 * expected[0]
    torch.testing.assert_close(losses(copy.deepcopy(fused), draws[0]), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("user", USERS, ids=lambda user: user.make.__name__)
def test_blocks(user, training):
    torch.manual_seed(0)
    model = user.make().train(training)
    draws = [arguments(user.spatial, seed) for seed in range(3)]
    sites = find_film(model, draws[0], norms=True)
    rows = user.in_training if training else user.found
    assert [(site.path, " ".join(site.order)) for site in sites] == [row[:2] for row in rows]
    assert all(word in (site.operator or site.reason) for site, (*_, word) in zip(sites, rows, strict=True))
    check(model, sum(site.fusable for site in sites), draws)


def test_nablafx(tcn):
    torch.manual_seed(0)
    options = {"num_blocks": 3, "num_controls": WORDS, "channel_width": 6, "num_inputs": 3, "residual": True}
    draws = [arguments((40,), seed) for seed in range(3)]
    for act, order in (("tanh", "conv1d batch_norm film tanh"), ("prelu", "conv1d batch_norm film")):
        model = tcn(**options, cond_type="film", act_type=act).eval()
        paths = [f"blocks.{i}.conv" for i in range(3)]
        sites = find_film(model, draws[0], norms=True)
        assert [(s.path, " ".join(s.order), s.fusable) for s in sites] == [(path, order, True) for path in paths]
        assert all("components.py:" in site.source for site in sites)
        check(model, 3, draws)
    sites = find_film(model.train(), draws[0], norms=True)
    assert [site.operator for site in sites] == ["norm_film"] * 3
    check(model, 3, draws)


def test_nablafx_over_time(tcn):
    """Its temporal FiLM has an LSTM's state, which changes at every call, and a value for each block of samples."""
    model = tcn(num_blocks=2, num_controls=WORDS, channel_width=6, cond_type="tfilm", cond_block_size=8).eval()
    args = torch.randn(2, 1, 40), torch.randn(2, WORDS)
    assert not any(site.fusable for site in find_film(model, args))
    fused, twin = fused_copy(model), model
    for _ in range(2):
        twin.reset_states(), fused.reset_states()
        torch.testing.assert_close(fused(*args), twin(*args))
