"""`torch.jit.script` and `torch.jit.trace` of models with the layers of norm_film."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from film_kernels import BatchNormFiLM, FiLMGenerator, LayerNormFiLM, NormFiLM, RMSNormFiLM
from film_kernels.activations import ACTIVATIONS, FILM_POSITIONS
from tests.helpers.subprocesses import assert_same_without_the_package

pytestmark = [  # TorchScript is on its way out, and a trace says what it takes for constants
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]
MAKERS = {
    "group": lambda **options: NormFiLM(2, 8, **options),
    "batch": lambda **options: BatchNormFiLM(8, **options),
    "channel": lambda **options: LayerNormFiLM(8, channel_dim=1, **options),
    "rms": lambda **options: RMSNormFiLM(8, channel_dim=1, **options),
    "tokens": lambda **options: LayerNormFiLM(8, **options),
    "rms tokens": lambda **options: RMSNormFiLM(8, **options),
}


class Model(nn.Module):
    """The layers among a user's own, with what a user's own may pass them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.generator = nn.Conv2d(4, 8, 3, padding=1), FiLMGenerator(5, 8)
        self.group, self.batch = NormFiLM(2, 8, gamma_offset=1), BatchNormFiLM(8, activation="mish")
        self.channel, self.rms = LayerNormFiLM(8, activation="gelu"), RMSNormFiLM(8, film_position="post")

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        gamma, beta = self.generator(words)
        x = self.batch(self.group(self.conv(x), gamma, beta=beta), gamma)
        return self.rms(self.channel(x.flatten(2).mT, gamma, beta), beta=beta).mean(1)


def shaped(name, *sizes):
    """Sizes (N, C, *spatial) in the order of a layer."""
    return sizes if "tokens" not in name else (sizes[0], *sizes[2:], sizes[1])


def test_a_model_computes_the_same_where_there_is_no_film_kernels(tmp_path):
    example = torch.randn(2, 4, 8, 6), torch.randn(2, 5)
    inputs = torch.randn(3, 4, 8, 6), torch.randn(3, 5)
    assert_same_without_the_package(Model().eval(), inputs, example, tmp_path)


@pytest.mark.parametrize("position", FILM_POSITIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_and_position(activation, position):
    for name in ("group", "rms tokens"):
        layer = MAKERS[name](activation=activation, negative_slope=0.2, film_position=position, gamma_offset=1)
        x, gamma, beta = torch.randn(shaped(name, 2, 8, 5)), torch.randn(2, 8), torch.randn(2, 8)
        torch.testing.assert_close(torch.jit.script(layer)(x, gamma, beta), layer(x, gamma, beta), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MAKERS)
def test_every_layer_and_every_shape_of_gamma_and_beta(name):
    layer = MAKERS[name]()
    scripted = torch.jit.script(layer)
    for spatial in ((), (5,), (4, 3), (2, 3, 2)):
        ones = (1,) * len(spatial)
        x = torch.randn(shaped(name, 2, 8, *spatial))
        for shape in ((2, 8), (1, 8), (8,), shaped(name, 2, 8, *ones), shaped(name, 1, 8, *ones), None):
            gamma, beta = (None if shape is None else torch.randn(shape) for _ in range(2))
            for given in ((gamma, beta), (gamma, None), (None, beta)):
                torch.testing.assert_close(scripted(x, *given), layer(x, *given), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("tracks", [True, False])
def test_running_statistics(tracks, momentum):
    layers = [BatchNormFiLM(8, momentum=momentum, track_running_stats=tracks) for _ in range(2)]
    scripted = torch.jit.script(layers[1])
    for train in (True, True, False, True):
        layers[0].train(train), scripted.train(train)
        x, gamma = torch.randn(4, 8, 6), torch.randn(4, 8)
        torch.testing.assert_close(scripted(x, gamma), layers[0](x, gamma), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dict(scripted.state_dict()), dict(layers[0].state_dict()))


def test_it_learns_as_the_layers_do():
    model = Model()
    scripted = torch.jit.script(model)
    x, words = torch.randn(3, 4, 8, 6), torch.randn(3, 5)
    one, other = (torch.autograd.grad(m(x, words).square().sum(), list(m.parameters())) for m in (model, scripted))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
