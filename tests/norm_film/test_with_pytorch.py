"""What users of plain PyTorch rely on: torch.func, forward mode, checkpointing, autocast, fake and meta tensors,
optimisers."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from film_kernels import (
    BatchNormFiLM,
    FiLMGenerator,
    LayerNormFiLM,
    NormFiLM,
    RMSNormFiLM,
    film,
    norm_film,
    use_backend,
)
from tests.helpers.norm_cases import SERVING, Case, ours, plain, tensors_of

pytestmark = pytest.mark.usefixtures("one_thread")
NORMS = (("group", 2), ("batch", None), ("channel", None), ("rms", None), ("l2", None))


class Net(nn.Module):
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


@pytest.fixture
def twins():
    torch.manual_seed(0)
    fused, plain_net = Net(), Net(False)
    plain_net.load_state_dict(fused.state_dict())
    return fused, plain_net


X, WORDS = torch.randn(6, 3, 9, 8), torch.randn(6, 5)


def gradients(net, call=None, **context):
    net.zero_grad()
    x = X.clone().requires_grad_()
    (call or net)(x, WORDS).square().sum().backward()
    return {"x": x.grad, **{name: p.grad for name, p in net.named_parameters()}}


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_it_is_the_plain_network(twins):
    close(twins[0](X, WORDS), twins[1](X, WORDS))
    close(*(gradients(net) for net in twins))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(twins, use_reentrant):
    fused, plain_net = twins
    close(gradients(fused, lambda *args: checkpoint(fused, *args, use_reentrant=use_reentrant)), gradients(plain_net))


def test_functional_call_grad_and_vmap(twins):
    fused, plain_net = twins
    values = {name: p.detach() for name, p in fused.named_parameters()}

    def loss(net):
        return lambda p, x, words: torch.func.functional_call(net, p, (x, words)).square().sum()

    found, expected = (torch.func.grad(loss(net))(values, X, WORDS) for net in (fused, plain_net))
    close(found, expected)
    of_each = torch.func.vmap(torch.func.grad(loss(fused)), in_dims=(None, 0, 0))(values, X[:, None], WORDS[:, None])
    close({name: g.sum(0) for name, g in of_each.items()}, expected)


@pytest.mark.parametrize("layout", ["contiguous", "channels_innermost"])
@pytest.mark.parametrize(("norm", "groups"), NORMS)
def test_torch_func_goes_through_the_plain_formula(norm, groups, layout):
    case = Case((3, 4, 5, 6), norm, groups, layout=layout)
    x, w, b, gamma, beta = tensors_of(case)
    call = lambda x, w, gamma: ours(case, [x, w, b, gamma, beta])  # noqa: E731
    # PyTorch 2.13 has no forward mode for group_norm in channels_last
    expected = lambda x, w, gamma: plain(case, [x.contiguous(), w, b, gamma, beta])  # noqa: E731
    many = torch.stack([x, x + 1, 2 * x], 1)
    mapped = torch.func.vmap(call, in_dims=(1, None, None))(many, w, gamma)
    torch.testing.assert_close(mapped, torch.stack([expected(many[:, i], w, gamma) for i in range(3)]))
    for argnums in ((0, 1, 2), (1, 2), (2,)):  # without the input's gradient too
        one, other = (
            torch.func.grad(lambda *args, f=f: f(*args).square().sum(), argnums)(x, w, gamma) for f in (call, expected)
        )
        torch.testing.assert_close(one, other)
    tangents = torch.ones_like(x), torch.ones_like(w), torch.ones_like(gamma)
    torch.testing.assert_close(*(torch.func.jvp(f, (x, w, gamma), tangents) for f in (call, expected)))
    with pytest.raises(ValueError, match="'vendor' cannot serve"), use_backend("vendor"):
        torch.func.vmap(call, in_dims=(1, None, None))(many, w, gamma)


@pytest.mark.parametrize(("norm", "groups"), NORMS)
def test_hessians(norm, groups):
    case = Case((2, 4, 2, 2), norm, groups, eps=0.1)
    x, w, b, gamma, beta = tensors_of(case)
    found, expected = (
        torch.func.hessian(lambda x, gamma, f=f: f(case, [x, w, b, gamma, beta]).sum(), (0, 1))(x, gamma)
        for f in (ours, plain)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("frozen", ["first", "generator"])
def test_one_part_frozen(twins, frozen):
    for net in twins:
        net.get_submodule(frozen).requires_grad_(False)
    found, expected = (gradients(net) for net in twins)
    assert found["first.weight" if frozen == "first" else "generator.linear.weight"] is None
    close(found, expected)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize(("norm", "groups"), NORMS)
def test_forward_mode_in_channels_last(norm, groups, requires_grad):
    case, found = Case((2, 4, 5, 6), norm, groups), []
    x, *others = tensors_of(case)
    tangent = torch.randn_like(x)
    for format in (torch.contiguous_format, torch.channels_last):
        primal = x.contiguous(memory_format=format).requires_grad_(requires_grad)
        with forward_ad.dual_level():
            y = ours(case, [forward_ad.make_dual(primal, tangent), *others])
            found.append(forward_ad.unpack_dual(y).tangent.detach())
    torch.testing.assert_close(*found)


def test_forward_mode(twins):
    tangent, found = torch.randn_like(WORDS), []
    for net in twins:
        with forward_ad.dual_level():
            found.append(forward_ad.unpack_dual(net(X, forward_ad.make_dual(WORDS, tangent))).tangent)
    assert found[0] is not None
    close(*found)


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}], ids=str)
def test_optimisers(twins, options):
    results = []
    for net in twins:
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, **options)
        for _ in range(4):
            gradients(net)
            assert all(p.grad.stride() == p.stride() for p in net.parameters())  # or foreach takes its slow path
            optimizer.step()
        results.append({name: p.detach() for name, p in net.named_parameters()})
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


def test_flops_are_counted(twins):
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for net in twins:
        with FlopCounterMode(display=False) as counter:
            net(X, WORDS).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_meta_and_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.device("meta"):
        net, batch = Net(), BatchNormFiLM(8)
    assert net.first.weight.is_meta and net(X.to("meta"), WORDS.to("meta")).shape == (6, 72, 8)
    y = batch(torch.empty(2, 8, 3, device="meta", requires_grad=True))
    y.sum().backward()
    assert batch.weight.grad.is_meta
    real = net.to_empty(device="cpu")
    real.load_state_dict(Net().state_dict())
    assert torch.isfinite(real(X, WORDS)).all()
    for backend in (None, *SERVING):
        with FakeTensorMode():
            x = torch.randn(2, 8, 4, 5).to(memory_format=torch.channels_last)
            y = norm_film(x, "group", 2, gamma=torch.randn(2, 8), beta=torch.randn(8), backend=backend)
        assert y.shape == x.shape and y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("film_dtype", [torch.float32, None], ids=["factors of float32", "factors of 16 bits"])
@pytest.mark.parametrize("wide", [False, True], ids=["16 bits in", "float32 in"])
@pytest.mark.parametrize(("norm", "groups"), NORMS)
def test_autocast_gives_the_dtypes_that_plain_pytorch_gives(backend, norm, groups, wide, film_dtype, dtype):
    case = Case((2, 4, 5, 6), norm, groups, dtype=torch.float32)
    x, w, b, gamma, beta = tensors_of(case)
    x = x if wide else x.to(dtype)
    gamma, beta = (t.to(film_dtype or dtype) for t in (gamma, beta))
    if norm in ("rms", "l2"):
        b = None
    if norm in ("rms", "l2") and not wide:
        w = None  # plain PyTorch's own formulas of these widen the input: there is no one dtype to be held to
    tensors = [None if t is None else t.requires_grad_() for t in (x, w, b, gamma, beta)]
    with torch.autocast("cpu", dtype=dtype):
        found = ours(case, tensors, backend)
        z = {
            "group": lambda: F.group_norm(x, 2, w, b), "batch": lambda: F.batch_norm(x, None, None, w, b, True),
            "channel": lambda: F.layer_norm(x.movedim(1, -1), (4,), w, b).movedim(-1, 1),
            "rms": lambda: F.rms_norm(x.movedim(1, -1), (4,), w, 1e-5).movedim(-1, 1),
            "l2": lambda: F.normalize(x, dim=1, eps=1e-5) * (1 if w is None else w[:, None, None]),
        }[norm]()  # fmt: skip
        expected = F.silu(gamma[..., None, None] * z + beta[..., None, None])
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    given = [t for t in tensors if t is not None]
    for gradient, t in zip(torch.autograd.grad(found.float().sum(), given), given, strict=True):
        assert gradient.dtype == t.dtype


def test_autocast_and_its_gradients(twins):
    exact, errors = gradients(copy.deepcopy(twins[1])), []
    for net in twins:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = net(X, WORDS).float().square().sum()
        net.zero_grad()
        y.backward()
        assert net.first.weight.grad.dtype == torch.float32
        errors.append(sum((p.grad - exact[name]).norm() / exact[name].norm() for name, p in net.named_parameters()))
    assert errors[0] <= 2 * errors[1]


def test_averaged_models(twins):
    averaged = torch.optim.swa_utils.AveragedModel(twins[0])
    averaged.update_parameters(twins[0])
    close(averaged(X, WORDS), twins[1](X, WORDS))


def test_inference_mode(backend):
    case = Case((2, 4, 5, 6), "group", 2)
    with torch.inference_mode():
        tensors = tensors_of(case)
        torch.testing.assert_close(ours(case, tensors, backend), plain(case, tensors))
