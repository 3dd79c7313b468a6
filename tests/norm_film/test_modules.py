"""The layers of norm_film as the normalisations of PyTorch that they take the place of."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from film_kernels import BatchNormFiLM, LayerNormFiLM, NormFiLM, RMSNormFiLM, film, norm_film, use_backend

pytestmark = pytest.mark.usefixtures("one_thread")
GAMMA, BETA = torch.randn(3, 8), torch.randn(3, 8)
MAKERS = {
    "group": lambda **options: NormFiLM(4, 8, **options),
    "batch": lambda **options: BatchNormFiLM(8, **options),
    "channel": lambda **options: LayerNormFiLM(8, **options),
    "rms": lambda **options: RMSNormFiLM(8, **options),
}
# The layer, the one whose place it takes, and the number of spatial dimensions.
PAIRS = {
    "GroupNorm": (lambda: NormFiLM(4, 8), lambda: nn.GroupNorm(4, 8), 2),
    "GroupNorm of one group": (lambda: NormFiLM(1, 8, eps=1e-3), lambda: nn.GroupNorm(1, 8, eps=1e-3), 1),
    "GroupNorm, no affine": (lambda: NormFiLM(4, 8, affine=False), lambda: nn.GroupNorm(4, 8, affine=False), 3),
    "InstanceNorm1d": (lambda: NormFiLM(8, 8), lambda: nn.InstanceNorm1d(8, affine=True), 1),
    "InstanceNorm2d": (lambda: NormFiLM(8, 8), lambda: nn.InstanceNorm2d(8, affine=True), 2),
    "InstanceNorm3d": (lambda: NormFiLM(8, 8, affine=False), lambda: nn.InstanceNorm3d(8), 3),
    "BatchNorm1d": (lambda: BatchNormFiLM(8), lambda: nn.BatchNorm1d(8), 1),
    "BatchNorm1d without positions": (lambda: BatchNormFiLM(8, 1e-3, 0.3), lambda: nn.BatchNorm1d(8, 1e-3, 0.3), 0),
    "BatchNorm2d": (lambda: BatchNormFiLM(8, momentum=None), lambda: nn.BatchNorm2d(8, momentum=None), 2),
    "BatchNorm3d": (lambda: BatchNormFiLM(8, affine=False), lambda: nn.BatchNorm3d(8, affine=False), 3),
    "BatchNorm2d, nothing tracked": (
        lambda: BatchNormFiLM(8, track_running_stats=False), lambda: nn.BatchNorm2d(8, track_running_stats=False), 2,
    ),
    "LayerNorm": (lambda: LayerNormFiLM(8), lambda: nn.LayerNorm(8), -1),
    "LayerNorm, no bias": (lambda: LayerNormFiLM([8], bias=False), lambda: nn.LayerNorm([8], bias=False), -2),
    "LayerNorm, no affine": (
        lambda: LayerNormFiLM(8, 1e-6, elementwise_affine=False),
        lambda: nn.LayerNorm(8, 1e-6, elementwise_affine=False), -1,
    ),
    "RMSNorm": (lambda: RMSNormFiLM(8), lambda: nn.RMSNorm(8), -1),
    "RMSNorm with eps": (lambda: RMSNormFiLM((8,), 1e-3), lambda: nn.RMSNorm((8,), 1e-3), -3),
    "RMSNorm, no affine": (
        lambda: RMSNormFiLM(8, elementwise_affine=False), lambda: nn.RMSNorm(8, elementwise_affine=False), -1,
    ),
}  # fmt: skip


def picture(spatial: int) -> torch.Tensor:
    """Channels last where `spatial` is negative."""
    sizes = (4, 3, 5)[: abs(spatial)]
    return torch.randn(3, 8, *sizes) if spatial >= 0 else torch.randn(3, *sizes, 8)


def modulated(z, spatial, gamma=GAMMA, beta=BETA):
    return F.silu(film(z, gamma, beta)) if spatial >= 0 else F.silu(film(z.movedim(-1, 1), gamma, beta).movedim(1, -1))


def fill(layer):
    """With parameters and statistics that are not those of the beginning."""
    with torch.no_grad():
        for name, t in layer.state_dict().items():
            if t.is_floating_point():
                t.copy_(torch.rand(t.shape) + 0.5 if name == "running_var" else torch.randn(t.shape))
    return layer


@pytest.mark.parametrize("name", PAIRS)
def test_takes_the_place_of_a_normalisation(name):
    make, make_plain, spatial = PAIRS[name]
    layer, plain = make(), make_plain()
    assert layer.state_dict().keys() == plain.state_dict().keys()
    for key, t in plain.state_dict().items():
        assert torch.equal(t, layer.state_dict()[key])  # the same initialisation
    layer.load_state_dict(fill(plain).state_dict())
    plain.load_state_dict(layer.state_dict())
    for train in (True, True, False, True):
        layer.train(train), plain.train(train)
        x = picture(spatial)
        results, grad = [], torch.randn(x.shape)
        for call in (lambda x: layer(x, GAMMA, BETA), lambda x: modulated(plain(x), spatial)):
            leaf = x.clone().requires_grad_()
            y = call(leaf)
            parameters = list((layer if not results else plain).parameters())
            results.append([y.detach(), *torch.autograd.grad(y, [leaf, *parameters], grad)])
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(layer.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-5)
    assert isinstance(layer, type(plain).__mro__[0] if "Instance" not in name and "Batch" not in name else nn.Module)


def test_what_they_are():
    assert isinstance(MAKERS["group"](), nn.GroupNorm) and isinstance(MAKERS["channel"](), nn.LayerNorm)
    assert isinstance(MAKERS["rms"](), nn.RMSNorm)
    assert isinstance(MAKERS["batch"](), nn.modules.batchnorm._BatchNorm)


@pytest.mark.parametrize("momentum", [0.1, 1.0, 0.0, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_running_statistics(backend, momentum, dtype):
    """At most twice as far off as those of nn.BatchNorm2d."""
    layer, plain = (
        fill(m.to(dtype)) for m in (BatchNormFiLM(8, momentum=momentum), nn.BatchNorm2d(8, momentum=momentum))
    )
    errors = torch.zeros(3)
    with use_backend(backend):
        for step in range(4):
            plain.load_state_dict(layer.state_dict())
            x = (3 + 2 * torch.randn(4, 8, 5, 6)).to(dtype)
            exact = [t.double() for t in (layer.running_mean, layer.running_var)]
            layer(x), plain(x)
            assert layer.num_batches_tracked == plain.num_batches_tracked == step + 1
            share = 1 / (step + 1) if momentum is None else momentum
            for t, name in zip(exact, ("mean", "var"), strict=True):
                t.lerp_(getattr(x.double(), name)((0, 2, 3)), share)
                found = [getattr(m, f"running_{name}").double() - t for m in (layer, plain)]
                errors += torch.tensor([t.square().sum() for t in (*found, t)])
        layer.eval(), plain.eval()
        before = copy.deepcopy(layer.state_dict())
        plain.load_state_dict(before)
        tolerance = {"rtol": 0.02, "atol": 0.05} if dtype == torch.bfloat16 else {}
        torch.testing.assert_close(layer(x), F.silu(plain(x)), **tolerance)
    error, allowed, size = errors.sqrt().tolist()
    assert error <= 2 * max(allowed, torch.finfo(dtype).eps / 2 * size)
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)


def test_running_statistics_without_gradients_and_of_floats_that_are_wider(backend):
    """Statistics of float32 beside an input of 16 bits; and none is counted twice where no gradient is asked for."""
    for x in (torch.randn(4, 6, 7), torch.randn(4, 6, 7).bfloat16()):
        mean, variance, one, other = torch.zeros(6), torch.ones(6), torch.zeros(6), torch.ones(6)
        with torch.no_grad():
            norm_film(x, "batch", running_mean=mean, running_var=variance, momentum=0.3, backend=backend)
        F.batch_norm(x.float(), one, other, training=True, momentum=0.3)
        torch.testing.assert_close((mean, variance), (one, other))
        leaf = x.clone().requires_grad_()
        norm_film(
            leaf, "batch", running_mean=mean, running_var=variance, momentum=0.3, backend=backend
        ).sum().backward()
        F.batch_norm(x.float(), one, other, training=True, momentum=0.3)
        torch.testing.assert_close((mean, variance), (one, other))


@pytest.mark.parametrize("of_input", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("of_statistics", [torch.float32, torch.float64])
def test_evaluation_by_running_statistics_of_another_dtype(backend, of_input, of_statistics):
    x, mean, variance = torch.randn(4, 6, 7, dtype=of_input), torch.randn(6), torch.rand(6) + 0.5
    mean, variance = mean.to(of_statistics), variance.to(of_statistics)
    y = norm_film(
        x, "batch", running_mean=mean, running_var=variance, training=False, activation="none", backend=backend
    )
    expected = F.batch_norm(x.double(), mean.double(), variance.double())
    assert y.dtype == of_input
    tolerance = 4 * torch.finfo(of_input).eps
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)


def test_one_of_the_running_statistics_alone(backend):
    x, mean = torch.randn(4, 6, 7), torch.zeros(6)
    norm_film(x, "batch", running_mean=mean, momentum=1.0, backend=backend)
    torch.testing.assert_close(mean, x.mean((0, 2)))
    variance = torch.zeros(6)
    norm_film(x, "batch", running_var=variance, momentum=1.0, backend=backend)
    torch.testing.assert_close(variance, x.var((0, 2)))


def test_evaluation_is_differentiable_in_everything(backend):
    mean, variance = torch.randn(6), torch.rand(6) + 0.5
    tensors = [torch.randn(4, 6, 7), torch.randn(6), torch.randn(6), torch.randn(4, 6), torch.randn(4, 6)]
    results = []
    for ours in (True, False):
        x, w, b, gamma, beta = (t.clone().requires_grad_() for t in tensors)
        if ours:
            y = norm_film(
                x, "batch", None, w, b, gamma, beta, running_mean=mean, running_var=variance, training=False,
                backend=backend,
            )  # fmt: skip
        else:
            y = F.silu(film(F.batch_norm(x, mean, variance, w, b), gamma, beta))
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), (x, w, b, gamma, beta))])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels_last", [False, True])
def test_in_evaluation_an_infinity_stays_where_it_is(backend, channels_last):
    """It reaches neither another element nor, through relu, the gradient of its own."""
    x, mean, variance = torch.randn(2, 6, 3, 5), torch.randn(6), torch.rand(6) + 0.5
    x[0, 1, 2, 3], x[1, 4, 0, 0] = float("inf"), -float("inf")
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    grad, results = torch.randn_like(x), []
    for ours in (True, False):
        leaf = x.clone().requires_grad_()
        if ours:
            options = {"running_mean": mean, "running_var": variance, "training": False, "activation": "relu"}
            y = norm_film(leaf, "batch", **options, backend=backend)
        else:
            y = F.relu(F.batch_norm(leaf, mean, variance))
        results.append([y.detach(), *torch.autograd.grad(y, leaf, grad)])
    assert results[0][1].isfinite().all()
    torch.testing.assert_close(*results)


def test_one_value_for_each_channel_raises_in_training():
    layer = BatchNormFiLM(8)
    for x in (torch.randn(1, 8), torch.randn(1, 8, 1, 1)):
        with pytest.raises(ValueError, match="more than one value for each channel"):
            layer(x)
    assert not layer.running_mean.any()
    layer.eval()
    assert layer(torch.randn(1, 8)).shape == (1, 8)


@pytest.mark.parametrize("name", MAKERS)
def test_prints_its_options(name):
    options = {"activation": "leaky_relu", "negative_slope": 0.2, "film_position": "post", "gamma_offset": 1}
    text = repr(MAKERS[name](**options))
    assert {"group": "4, 8", "batch": "8, eps=1e-05, momentum=0.1"}.get(name, "(8,), eps=") in text
    assert "activation='leaky_relu', film_position='post', negative_slope=0.2, gamma_offset=1.0" in text


@pytest.mark.parametrize("name", MAKERS)
def test_copies_pickles_saves_and_moves(name):
    layer = fill(MAKERS[name](gamma_offset=1)).eval()
    x = torch.randn(3, 8) if name == "batch" else torch.randn(3, 8, 8)
    expected = layer(x, GAMMA, BETA)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)):
        assert torch.equal(other(x, GAMMA, BETA), expected)
    double = copy.deepcopy(layer).double()
    assert double(x.double(), GAMMA.double(), BETA.double()).dtype == torch.float64
    for half in (torch.float16, torch.bfloat16):
        y = copy.deepcopy(layer).to(half)(x.to(half), GAMMA.to(half), BETA.to(half))
        assert y.dtype == half
        torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.2)
    meta = MAKERS[name](device="meta")
    assert meta(x.to("meta"), GAMMA.to("meta"), BETA.to("meta")).shape == expected.shape
    assert copy.deepcopy(layer).to("meta")(x.to("meta")).is_meta
    assert MAKERS[name](dtype=torch.float64).weight.dtype == torch.float64


@pytest.mark.parametrize("name", MAKERS)
def test_mixed_precision(name):
    """Parameters of float32 beside an input of 16 bits, as models keep them that are trained so."""
    layer = fill(MAKERS[name]())
    x = torch.randn(3, 8, 8)
    expected = copy.deepcopy(layer)(x.bfloat16().float(), GAMMA.bfloat16().float())
    y = layer(x.bfloat16(), GAMMA.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0.02, atol=0.05)
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(("options", "error"), [
    ({"activation": "tanhh"}, ValueError), ({"activation": None}, ValueError), ({"film_position": "after"}, ValueError),
    ({"gamma_offset": "1"}, TypeError), ({"gamma_offset": float("nan")}, ValueError),
    ({"negative_slope": None}, TypeError),
])  # fmt: skip
def test_options_are_checked_when_it_is_made(name, options, error):
    with pytest.raises(error, match=f"^{next(iter(options))}"):
        MAKERS[name](**options)


@pytest.mark.parametrize("make", [LayerNormFiLM, RMSNormFiLM])
def test_shapes_of_several_sizes_are_refused(make):
    with pytest.raises(ValueError, match=r"^normalized_shape must be the number of channels, got \(4, 8\)"):
        make((4, 8))
    for wrong in (0, 2, None, "last"):
        with pytest.raises(ValueError, match=r"^channel_dim must be 1 or -1"):
            make(8, channel_dim=wrong)
    with pytest.raises(ValueError, match="must be divisible by num_groups"):
        NormFiLM(3, 8)


@pytest.mark.parametrize("make", [LayerNormFiLM, RMSNormFiLM])
def test_channels_that_come_first(make):
    layer = fill(make(8, channel_dim=1))
    x = torch.randn(3, 8, 4, 5)
    last = type(layer).__mro__[2]
    expected = F.silu(film(last.forward(layer, x.movedim(1, -1)).movedim(-1, 1), GAMMA, BETA))
    torch.testing.assert_close(layer(x, GAMMA, BETA), expected, rtol=1e-4, atol=1e-5)


def test_rms_norm_takes_the_eps_of_its_input_where_it_has_none():
    layer = RMSNormFiLM(8, activation="none")
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        x = (torch.randn(3, 8) * 1e-4).to(dtype)
        expected = nn.RMSNorm(8, dtype=dtype)(x)
        torch.testing.assert_close(copy.deepcopy(layer).to(dtype)(x), expected)


@pytest.mark.parametrize("name", MAKERS)
def test_gamma_and_beta_may_be_left_out_and_named(name):
    layer, x = fill(MAKERS[name]()).eval(), torch.randn(3, 8, 8)
    ones, zeros = torch.ones(3, 8), torch.zeros(3, 8)
    for given, other in (({}, (ones, zeros)), ({"gamma": GAMMA}, (GAMMA, zeros)), ({"beta": BETA}, (ones, BETA))):
        torch.testing.assert_close(layer(x, **given), layer(x, *other))


@pytest.mark.parametrize("name", MAKERS)
def test_hooks_and_apply(name):
    layer, seen = MAKERS[name](), []
    layer.register_forward_pre_hook(lambda module, args: seen.append(len(args)))
    layer.register_forward_hook(lambda module, args, y: seen.append(tuple(y.shape)))
    layer.register_full_backward_hook(lambda module, grads, out: seen.append(len(grads)))
    layer(torch.randn(3, 8, 8, requires_grad=True), GAMMA, BETA).sum().backward()
    assert seen == [3, (3, 8, 8), 3]


def test_trains_as_the_plain_network_does():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3, bias=False)  # whose gradient would be a rounding, which Adam makes much of
    twin, layer, norm = copy.deepcopy(conv), BatchNormFiLM(8, activation="relu"), nn.BatchNorm2d(8)
    x, target, losses = torch.randn(6, 3, 9, 9), torch.randn(6, 8, 7, 7), []
    for parts, forward in (((conv, norm), lambda: torch.relu(norm(conv(x)))), ((twin, layer), lambda: layer(twin(x)))):
        optimizer = torch.optim.Adam([p for part in parts for p in part.parameters()], lr=1e-2)
        losses.append([])
        for _ in range(15):
            optimizer.zero_grad()
            loss = F.mse_loss(forward(), target)
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0][-1] < losses[0][0]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.state_dict(), norm.state_dict(), rtol=1e-3, atol=1e-4)
