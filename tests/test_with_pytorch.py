"""What users of plain PyTorch rely on, held for the package's layers: what PyTorch does with modules and their
gradients."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from film_kernels import FiLMGenerator, FusedFiLM, FusedFiLM1d, LayerNormFiLM, NormFiLM, RMSNormFiLM, film

pytestmark = pytest.mark.usefixtures("one_thread")


class Plain(nn.Conv2d):
    """What FusedFiLM is, as everybody writes it."""

    def forward(self, x, gamma, beta):
        return film(torch.relu(super().forward(x)), gamma, beta)


class Net(nn.Module):
    def __init__(self, fused=True) -> None:
        super().__init__()
        self.first, self.generator = (FusedFiLM if fused else Plain)(3, 8, 3, padding=1), FiLMGenerator(5, 8)

    def forward(self, x, words):
        return self.first(x, *self.generator(words))


class NormNet(nn.Module):
    """A ResNet block of a diffusion U-Net, and tokens after it, with this package's layers or without."""

    def __init__(self, fused=True) -> None:
        super().__init__()
        self.conv, self.generator, self.fused = nn.Conv2d(3, 8, 3, padding=1), FiLMGenerator(5, 8), fused
        options = {"gamma_offset": 1} if fused else {}
        self.first = (NormFiLM if fused else nn.GroupNorm)(4, 8, **options)
        self.second = (RMSNormFiLM if fused else nn.RMSNorm)(8, **({"activation": "gelu"} if fused else {}))
        self.third = (LayerNormFiLM if fused else nn.LayerNorm)(8, **({"activation": "none"} if fused else {}))

    def forward(self, x, words):
        gamma, beta = self.generator(words)
        x = self.conv(x)
        if self.fused:
            x = self.first(x, gamma, beta).flatten(2).mT
            return self.third(self.second(x, gamma, beta[:, None]))
        x = F.silu(film(self.first(x), 1 + gamma, beta)).flatten(2).mT
        return self.third(F.gelu(self.second(x) * gamma[:, None] + beta[:, None]))


@pytest.fixture(params=[Net, NormNet], ids=["convolution", "norms"])
def twins(request):
    """A network of this package's layers, and what it is, as everybody writes it."""
    torch.manual_seed(0)
    fused, plain = request.param(), request.param(False)
    plain.load_state_dict(fused.state_dict())
    return fused, plain


_generator = torch.Generator().manual_seed(0)
X, WORDS = (torch.randn(shape, generator=_generator) for shape in ((6, 3, 9, 8), (6, 5)))


def gradients(net, call=None):
    net.zero_grad()
    x = X.clone().requires_grad_()
    (call or net)(x, WORDS).square().sum().backward()
    return {"x": x.grad, **{name: p.grad for name, p in net.named_parameters()}}


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_it_is_the_plain_network(twins):
    close(*(net(X, WORDS) for net in twins))
    close(*(gradients(net) for net in twins))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(twins, use_reentrant):
    fused, plain = twins
    found = gradients(fused, lambda *args: checkpoint(fused, *args, use_reentrant=use_reentrant))
    close(found, gradients(plain))


def test_gradient_accumulation(twins):
    fused, _ = twins
    whole = gradients(fused)
    fused.zero_grad()
    for part in range(3):
        fused(X[2 * part : 2 * part + 2], WORDS[2 * part : 2 * part + 2]).square().sum().backward()
    close({name: p.grad for name, p in fused.named_parameters()}, {k: v for k, v in whole.items() if k != "x"})


def test_functional_call_grad_and_vmap(twins):
    fused, plain = twins
    values = {name: p.detach() for name, p in fused.named_parameters()}

    def loss(net):
        return lambda p, x, words: torch.func.functional_call(net, p, (x, words)).square().sum()

    found, expected = (torch.func.grad(loss(net))(values, X, WORDS) for net in (fused, plain))
    close(found, expected)
    of_each = torch.func.vmap(torch.func.grad(loss(fused)), in_dims=(None, 0, 0))(values, X[:, None], WORDS[:, None])
    close({name: g.sum(0) for name, g in of_each.items()}, expected)


def test_forward_mode(twins):
    fused, plain = twins
    tangent = torch.randn_like(WORDS)
    found = []
    for net in (fused, plain):
        with forward_ad.dual_level():
            y = net(X, forward_ad.make_dual(WORDS, tangent))
            found.append(forward_ad.unpack_dual(y).tangent)
    assert found[0] is not None
    close(*found)


def test_double_backward(twins):
    found = []
    for net in twins:
        x = X.clone().requires_grad_()
        (slope,) = torch.autograd.grad(net(x, WORDS).square().sum(), x, create_graph=True)
        net.zero_grad()
        slope.norm().backward()
        found.append({name: p.grad / p.grad.abs().max() for name, p in net.named_parameters() if "bias" not in name})
    close(*found)


@pytest.mark.parametrize("frozen", ["first", "generator"])
def test_one_part_frozen(twins, frozen):
    for net in twins:
        net.get_submodule(frozen).requires_grad_(False)
    found, expected = (gradients(net) for net in twins)
    assert found["first.weight" if frozen == "first" else "generator.linear.weight"] is None
    close(found, expected)


@pytest.mark.parametrize("twins", [Net], indirect=True)  # of a norm's weight there is no norm to take
@pytest.mark.parametrize("parametrize", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrizations(twins, parametrize):
    for net in twins:
        torch.manual_seed(4)
        parametrize(net.first)
    found, expected = (gradients(net) for net in twins)
    assert any("parametrizations" in name for name in found)
    close(found, expected)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("options", [{"foreach": True}, {"foreach": False}, {"fused": True}], ids=str)
def test_optimisers(twins, options, channels_last):
    results = []
    for net in twins:
        if channels_last:
            net = net.to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, **options)
        for _ in range(5):
            gradients(net)
            nn.utils.clip_grad_norm_(net.parameters(), 5.0, foreach=options.get("foreach"))
            assert all(p.grad.stride() == p.stride() for p in net.parameters())  # or foreach takes its slow path
            optimizer.step()
        results.append({name: p.detach() for name, p in net.named_parameters()})
    # Adam makes large steps of small gradients, of which there are some in front of a norm.
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3 if isinstance(twins[0], NormNet) else 1e-4)


def test_flops_are_those_of_the_convolution(twins):
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for net in twins:
        with FlopCounterMode(display=False) as counter:
            net(X, WORDS).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] >= 2 * 2 * X[:, 0].numel() * 8 * 3 * 3 * 3  # forward and grad_weight


def test_meta_device():
    with torch.device("meta"):
        net, line = Net(), FusedFiLM1d(3, 8, 3)
    assert net.first.weight.is_meta
    y = net(X.to("meta"), WORDS.to("meta"))
    assert y.is_meta and y.shape == (6, 8, 9, 8)
    assert line(torch.empty(2, 3, 9, device="meta")).shape == (2, 8, 7)
    real = net.to_empty(device="cpu")
    real.load_state_dict(Net().state_dict())
    assert torch.isfinite(real(X, WORDS)).all()


def test_autocast_and_its_gradients(twins):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [net(X, WORDS) for net in twins]
        assert found[0].dtype == found[1].dtype
    exact = gradients(copy.deepcopy(twins[1]))
    errors = []
    for net in twins:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = net(X, WORDS).float().square().sum()
        net.zero_grad()
        y.backward()
        assert net.first.weight.grad.dtype == torch.float32
        errors.append(sum((p.grad - exact[name]).norm() / exact[name].norm() for name, p in net.named_parameters()))
    assert errors[0] <= 2 * errors[1]


def test_averaged_models(twins):
    fused, plain = twins
    averaged = torch.optim.swa_utils.AveragedModel(fused)
    averaged.update_parameters(fused)
    close(averaged(X, WORDS), plain(X, WORDS))
