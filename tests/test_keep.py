"""`keep`: what forward keeps for backward, of the operator, the layers and fused models."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import film_kernels
from film_kernels import FusedFiLM, FusedFiLM1d, conv_film
from film_kernels.problems.conv_film import KEEPS
from tests.helpers.cases import EMULATED, INTERPRETED
from tests.helpers.conversion.equality import without_a_judge
from tests.helpers.kept import kept_bytes

X, W, B = torch.randn(2, 3, 9, 8), torch.randn(16, 3, 3, 3), torch.randn(16)
GAMMA, BETA = torch.randn(2, 16), torch.randn(2, 16)
Z_BYTES = 2 * 16 * 7 * 6 * 4
BIT_BYTES = 2 * 7 * 6 * 2


def leaves():
    return [t.clone().requires_grad_() for t in (X, W, B, GAMMA, BETA)]


@pytest.mark.parametrize(
    ("backend", "activation", "expected"),
    [
        ("cpu", "relu", {"fast": BIT_BYTES, "bits": BIT_BYTES, "least": BIT_BYTES}),
        ("vendor", "relu", {"fast": Z_BYTES, "bits": 0, "least": 0}),
        (None, "silu", {"fast": Z_BYTES, "bits": Z_BYTES, "least": 0}),
        ("vendor", "silu", {"fast": Z_BYTES, "bits": 0, "least": 0}),
        ("vendor", "none", {"fast": Z_BYTES, "bits": 0, "least": 0}),
    ],
)
def test_bytes_kept_and_the_same_gradients(backend, activation, expected):
    results = {}
    for keep in KEEPS:
        given = leaves()
        kept, y = kept_bytes(
            lambda given=given, keep=keep: conv_film(*given, activation=activation, keep=keep, backend=backend), given
        )
        assert kept == expected[keep], keep
        results[keep] = torch.autograd.grad(y.square().sum(), given)
    for keep in KEEPS[1:]:
        for one, other in zip(results["fast"], results[keep], strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_shift_alone_needs_nothing_of_the_convolution(keep, offset):
    x, w, b, _, beta = leaves()
    options = {"activation": "none", "keep": keep, "gamma_offset": offset, "backend": "vendor"}
    kept, y = kept_bytes(lambda: conv_film(x, w, b, None, beta, **options), [x, w, b, beta])
    assert kept == 0
    grad = torch.randn_like(y)
    plain = (1 + offset) * nn.functional.conv2d(x, w, b) + beta[..., None, None]
    found, expected = (torch.autograd.grad(one, [x, w, b, beta], grad) for one in (y, plain))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    (alone,) = torch.autograd.grad(conv_film(x, w, b, None, beta, **options), [beta], grad)
    torch.testing.assert_close(alone, expected[3])


def test_gamma_alone_keeps_no_more_than_is_asked():
    """A frozen convolution: on the CPU FiLM's own input is kept with "fast", being faster, and bits otherwise."""
    sizes = {}
    for keep in KEEPS:
        gamma = GAMMA.clone().requires_grad_()
        sizes[keep], y = kept_bytes(
            lambda gamma=gamma, keep=keep: conv_film(X, W, B, gamma, BETA, keep=keep), [X, W, B, gamma, BETA]
        )
        (found,) = torch.autograd.grad(y.sum(), [gamma])
        torch.testing.assert_close(found, nn.functional.conv2d(X, W, B).relu().sum((2, 3)), rtol=1e-4, atol=1e-4)
    assert sizes == {"fast": Z_BYTES, "bits": BIT_BYTES, "least": BIT_BYTES}


def test_a_wrong_one_names_the_argument():
    for call in (
        lambda keep: conv_film(X, W, keep=keep),
        lambda keep: FusedFiLM(3, 4, 3, keep=keep),
        lambda keep: film_kernels.fuse(nn.Conv2d(3, 4, 3), keep=keep),
    ):
        with pytest.raises(ValueError, match=r"^keep must be one of 'fast', 'bits', 'least', got 'most'"):
            call("most")
        with pytest.raises((ValueError, TypeError), match=r"^keep must be"):
            call(None)


@pytest.mark.parametrize("layer", [FusedFiLM, FusedFiLM1d])
def test_layers(layer):
    x = torch.randn(2, 3, 9, 8)[(slice(None),) * (4 if layer is FusedFiLM else 3) + (0,) * (layer is FusedFiLM1d)]
    made = layer(3, 16, 3, activation="silu", keep="least")
    assert "keep='least'" in repr(made) and "keep" not in repr(layer(3, 16, 3))
    assert made.state_dict().keys() == layer(3, 16, 3).state_dict().keys()
    for one in (made, copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert kept_bytes(lambda one=one: one(x, GAMMA, BETA), [x, GAMMA, BETA, *one.parameters()])[0] == 0
    del made.__dict__["keep"]  # as one that was pickled before there was a choice
    assert kept_bytes(lambda: made(x, GAMMA, BETA), [x, GAMMA, BETA, *made.parameters()])[0] > 0


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)

    def forward(self, x, gamma, beta):
        return nn.functional.silu(self.conv(x) * gamma[..., None, None] + beta[..., None, None])


class Composed(Net):
    """Two scales, which are one gamma."""

    def forward(self, x, gamma, beta):
        return nn.functional.silu((self.conv(x) * gamma[..., None, None] + beta[..., None, None]) * 0.5)


@without_a_judge()
@pytest.mark.parametrize("net", [Net, Composed])
def test_fused_models_keep_what_is_asked(net):
    model = net()
    known = [X, GAMMA, BETA, *model.parameters()]
    given = (X, GAMMA, BETA)
    sizes = {}
    for keep in (*KEEPS, "fast"):  # a model may be fused again, with another wish
        film_kernels.fuse(model, given, keep=keep)
        for one in (model, copy.deepcopy(model)):
            others = [*known, *one.parameters()]
            sizes[keep] = kept_bytes(lambda one=one: one(*given), others)[0]
            assert (sizes[keep] >= Z_BYTES) == (keep != "least"), (keep, sizes)


@without_a_judge()
def test_torch_compile_takes_it_as_an_option():
    for keep, least in (("fast", Z_BYTES), ("least", 0)):
        torch._dynamo.reset()
        model = Net()
        compiled = torch.compile(model, backend="film_kernels", options={"backend": "eager", "keep": keep})
        known = [X, GAMMA, BETA, *model.parameters()]
        assert kept_bytes(lambda compiled=compiled: compiled(X, GAMMA, BETA), known)[0] == least
    with pytest.raises(Exception, match="keep must be one of"):
        torch.compile(Net(), backend="film_kernels", options={"backend": "eager", "keep": "none"})(X, GAMMA, BETA)


class Layers(nn.Module):
    """Sixteen, one after the other, each with a bias, gamma and beta."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(16))
        self.film = nn.ParameterList(torch.randn(2, 8) for _ in range(32))

    def forward(self, x, call):
        for i, layer in enumerate(self.layers):
            x = call(x, layer.weight, layer.bias, *self.film[2 * i : 2 * i + 2])
        return x


def plain(x, w, b, gamma, beta):
    return gamma[..., None, None] * torch.relu(nn.functional.conv2d(x, w, b, padding=1)) + beta[..., None, None]


@pytest.mark.parametrize("backend", ["vendor", *INTERPRETED, *EMULATED[:1]], indirect=True)
def test_sixteen_layers(backend):
    """Every layer keeps its input, which is the layer's before it, for the weight's gradient; plain PyTorch keeps the
    activation beside it."""
    model, x = Layers(), torch.randn(2, 8, 5, 5)
    known = [x, *model.parameters()]
    map_bytes = x.numel() * 4
    kept, y = kept_bytes(lambda: model(x, plain), known)
    expected = torch.autograd.grad(y.square().sum(), list(model.parameters()))
    assert kept == (15 + 16) * map_bytes
    bits = 16 * 2 * 5 * 5 if backend != "vendor" else 0
    for keep, beside in {"fast": 16 * map_bytes, "bits": bits, "least": 0}.items():

        def call(*tensors, keep=keep):
            return conv_film(*tensors, padding=1, keep=keep, backend=backend)

        kept, y = kept_bytes(lambda call=call: model(x, call), known)
        assert kept == 15 * map_bytes + beside, keep
        found = torch.autograd.grad(y.square().sum(), list(model.parameters()))
        for one, other in zip(found, expected, strict=True):
            assert (one - other).norm() <= 1e-5 * other.norm(), keep
