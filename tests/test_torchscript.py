"""`torch.jit.script` and `torch.jit.trace` of models with the package's layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from film_kernels import FiLM, FiLMGenerator, FusedFiLM, FusedFiLM1d
from film_kernels.activations import ACTIVATIONS, FILM_POSITIONS
from tests.helpers.subprocesses import assert_same_without_the_package

pytestmark = [  # TorchScript is on its way out, and a trace says what it takes for constants
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


class Model(nn.Module):
    """The layers among a user's own, with what a user's own may pass them."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.generator = FiLMGenerator(5, 8)
        self.conv = FusedFiLM(4, 8, 3, padding=1, **options)
        self.pool = nn.MaxPool2d(2)
        self.last = FusedFiLM1d(8, 8, 3, film_position="pre")
        self.film = FiLM()

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        gamma, beta = self.generator(words)
        x = self.film(self.pool(self.conv(x, gamma, beta=beta)), gamma, beta)
        return self.last(x.flatten(2), beta=beta).mean(-1)


def sequence_or_picture(layer, batch: int | None = 2) -> Tensor:
    shape = (layer.in_channels, *(9, 7)[: len(layer.kernel_size)])
    return torch.randn(shape if batch is None else (batch, *shape))


def agree(layer, x: Tensor, *factors: Tensor | None, scripted=None) -> None:
    scripted = torch.jit.script(layer) if scripted is None else scripted
    torch.testing.assert_close(scripted(x, *factors), layer(x, *factors), rtol=1e-4, atol=1e-5)


def test_a_model_computes_the_same_where_there_is_no_film_kernels(tmp_path):
    example = torch.randn(2, 4, 8, 6), torch.randn(2, 5)
    inputs = torch.randn(3, 4, 8, 6), torch.randn(3, 5)
    assert_same_without_the_package(Model(activation="gelu", gamma_offset=1), inputs, example, tmp_path)


@pytest.mark.parametrize("position", FILM_POSITIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_and_position(activation, position):
    options = {"activation": activation, "negative_slope": 0.2, "film_position": position}
    for layer in (FusedFiLM(4, 8, 3, **options), FusedFiLM1d(4, 8, 3, gamma_offset=1, **options)):
        agree(layer, sequence_or_picture(layer), torch.randn(2, 8), torch.randn(2, 8))


@pytest.mark.parametrize("options", [
    {"stride": 2, "padding": 1}, {"bias": False, "groups": 2}, {"padding": "same", "dilation": 2}, {"padding": "valid"},
    {"padding": 2, "padding_mode": "reflect"}, {"padding": 1, "padding_mode": "circular", "stride": 2},
    {"padding": "same", "padding_mode": "replicate"},
])  # fmt: skip
def test_every_geometry(options):
    for layer in (FusedFiLM(4, 8, 3, **options), FusedFiLM1d(4, 8, 3, **options)):
        scripted = torch.jit.script(layer)
        for batch in (2, None):
            factors = torch.randn(2 if batch else 1, 8), torch.randn(1, 8)
            agree(layer, sequence_or_picture(layer, batch), *factors, scripted=scripted)


@pytest.mark.parametrize("kind", [FusedFiLM, FusedFiLM1d])
def test_every_shape_of_gamma_and_beta(kind):
    layer = kind(4, 8, 3, gamma_offset=0.5)
    scripted = torch.jit.script(layer)
    ones = (1,) * len(layer.kernel_size)
    x = sequence_or_picture(layer)
    shapes = [(2, 8), (1, 8), (8,), (2, 8, *ones), (1, 8, *ones), None]
    for gamma_shape, beta_shape in zip(shapes, reversed(shapes), strict=True):
        gamma, beta = (None if shape is None else torch.randn(shape) for shape in (gamma_shape, beta_shape))
        agree(layer, x, gamma, beta, scripted=scripted)
    agree(layer, x, scripted=scripted)
    gamma = torch.randn(8)
    torch.testing.assert_close(scripted(x, gamma.view(8, *ones)), scripted(x, gamma))
    for shape in ((3, 8), (7,), (2, 8, *ones[1:], 2), (2, 8, *ones, 1), ()):
        for name in ("gamma", "beta"):
            with pytest.raises(torch.jit.Error, match=rf"{name} must have shape \(N, K\) = \(2, 8\)"):
                scripted(x, **{name: torch.randn(shape)})


def test_it_learns_as_the_layer_does():
    model = Model()
    scripted = torch.jit.script(model)
    x, words = torch.randn(3, 4, 8, 6), torch.randn(3, 5)
    one, other = (torch.autograd.grad(m(x, words).square().sum(), list(m.parameters())) for m in (model, scripted))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_under_autocast():
    model = Model()
    scripted, x, words = torch.jit.script(model), torch.randn(2, 4, 8, 6), torch.randn(2, 5)
    with torch.autocast("cpu", torch.bfloat16):
        one, other = model(x, words), scripted(x, words)
    # TorchScript's own autocast multiplies in float32
    torch.testing.assert_close(one, other, rtol=0.05, atol=0.05, check_dtype=False)


def test_film_alone_needs_channels():
    scripted = torch.jit.script(FiLM())
    with pytest.raises(torch.jit.Error, match="input must have shape"):
        scripted(torch.randn(8), torch.randn(8), torch.randn(8))
