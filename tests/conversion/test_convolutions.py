"""`fuse(model, convolutions=True)`: convolutions without FiLM; and `frozen=True`: what is made of weights once."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from functools import partial
from itertools import chain

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from film_kernels import find_film, fuse, packed, use_backend
from tests.helpers.conversion.equality import assert_as_good, assert_equal, counted_calls
from tests.helpers.conversion.norm_sites import perturbed

K = 32


class Net(nn.Module):
    """Convolutions with everything behind them that can be taken in, and with what cannot."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, K, 3, padding=1), nn.Conv2d(K, K, 3, padding=1, bias=False)
        self.norm, self.third = nn.BatchNorm2d(K), nn.Conv2d(K, K, 3, padding=1)
        self.scale, self.twice = nn.Parameter(torch.randn(K, 1, 1)), nn.Conv2d(K, K, 3, padding=1)
        self.up, self.last = nn.ConvTranspose2d(K, K, 2, 2), nn.Conv2d(K, 5, 1)

    def forward(self, x, g):
        h = F.silu(self.first(x))
        h = h + F.relu(self.norm(self.second(h)))
        h = h + self.third(h) * self.scale  # a residual
        h = F.relu(self.twice(h)) * g[:, :, None, None]  # FiLM
        h = F.gelu(self.norm(F.dropout(self.twice(h), 0.5, self.training)))
        return self.last(self.up(h))


def arguments(seed=0, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=draw, dtype=dtype) for shape in ((2, 3, 12, 12), (2, K)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return perturbed(Net()).eval()


fused_copy = partial(lambda model, **options: fuse(copy.deepcopy(model), convolutions=True, **options))


def test_what_follows_is_taken_in(net):
    fused = fused_copy(net)
    with counted_calls() as calls:
        fused(*arguments())
    assert sorted(calls) == sorted(["silu pre", "relu pre", "none pre", "relu post", "gelu pre", "none pre"])
    sites = find_film(net, arguments(), convolutions=True)
    assert [(site.path, " ".join(site.order), site.operator) for site in sites] == [
        ("first", "conv2d silu", "conv_film"),
        ("second", "conv2d batch_norm relu", "conv_film"),
        ("third", "conv2d scale", "conv_film"),
        ("twice", "conv2d relu scale", "conv_film"),
        ("twice", "conv2d dropout batch_norm gelu", "conv_film"),
        ("last", "conv2d", "conv_film"),
    ]


@pytest.mark.parametrize("training", (False, True))
def test_equal_and_as_good(net, training):
    net.train(training)
    if training:
        F_dropout_of_nothing(net)
    assert_equal(copy.deepcopy(net).double(), fused_copy(net).double(), arguments(dtype=torch.float64))
    assert_as_good(net, fused_copy(net), [arguments(seed) for seed in range(4)])


def F_dropout_of_nothing(net):
    """Let the norm be in training, and not the dropout."""
    net.eval()
    net.norm.train()
    net.norm.momentum = 0.0  # the two models would count the same batches into different statistics


def test_without_the_wish_they_are_as_they_were(net):
    with counted_calls() as calls:
        fuse(net)(*arguments())
    assert sorted(calls) == [
        "batch gelu post",
        "batch relu post",
        "none pre",
        "relu post",
    ]  # norms, FiLM, a learnt scale


@pytest.mark.judged
def test_a_convolution_is_taken_where_its_sum_is_faster():
    """Depthwise ones stay PyTorch's own, but for those that only scale; and so do those of few positions."""

    def reasons(*layers, size=32):
        model = nn.Sequential(*layers).eval()
        inputs = torch.randn(2, layers[0].in_channels, size, size)
        sites = find_film(model, inputs, convolutions=True)
        assert len(sites) == len([layer for layer in layers if isinstance(layer, nn.Conv2d)])
        with counted_calls() as calls, torch.no_grad():
            fuse(model, convolutions=True)(inputs)
        assert len(calls) == sum(site.fusable for site in sites)
        return {site.reason for site in sites}

    assert reasons(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()) == {None}
    assert reasons(nn.Conv2d(64, 64, 3, padding=1)) == {None}
    assert reasons(nn.Conv2d(64, 2, 3, padding=1)) == {None}
    for options in ({"kernel_size": 1}, {"kernel_size": 1, "groups": 64}, {"kernel_size": 3, "stride": 2}):
        assert reasons(nn.Conv2d(64, 64, **options)) == {None}
    own = "not faster here: PyTorch's own convolution is, of these sizes"
    assert reasons(nn.Conv2d(64, 64, 3, groups=64)) == reasons(nn.Conv2d(64, 64, 3), size=5) == {own}


@pytest.mark.judged
def test_a_site_of_few_elements_is_left():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.conv = nn.GroupNorm(4, 8), nn.Conv2d(8, 8, 3, groups=4)

        def forward(self, x, g):
            return F.silu(self.norm(x)), F.silu(self.norm(x) * g[:, :, None, None]), self.conv(x) + g[:, :, None, None]

    g = torch.randn(2, 8)
    few, many = (find_film(Block(), (torch.randn(2, 8, n, n), g), norms=True) for n in (32, 128))
    small = "not faster here: of so few elements a call costs more than it saves"
    passes = (
        "not faster here: PyTorch's own convolution would serve, and what stands behind it takes as long as it does now"
    )
    assert [site.reason for site in few] == [small, small, passes]
    assert [site.reason for site in many] == [None, None, passes]
    some = find_film(Block().eval(), (torch.randn(2, 8, 24, 24), g), norms=True)
    assert [site.reason for site in some] == [small, None, passes]
    with use_backend("cpu"):  # a user who insists gets all
        assert all(site.fusable for site in find_film(Block(), (torch.randn(2, 8, 8, 8), g), norms=True))


@pytest.mark.judged
def test_in_training_a_small_site_is_left_between_convolutions_of_pytorchs():
    class Block(nn.Module):
        def __init__(self, others, size=8):
            super().__init__()
            self.conv = nn.Conv2d(size, size, 3, padding=1)
            self.others = nn.Sequential(*(nn.Conv2d(size, size, 3, padding=1) for _ in range(others)))

        def forward(self, x, g):
            return self.others(F.relu(self.conv(x) * g[:, :, None, None]))

    def reason(model, side=8):
        channels = model.conv.in_channels
        (site,) = find_film(model, (torch.randn(2, channels, side, side), torch.randn(2, channels)))
        return site.reason

    little = "not faster here: of so few products, between PyTorch's own convolutions, a call costs more than it saves"
    assert reason(Block(0)) is None and reason(Block(1).eval()) is None
    assert reason(Block(1)) == little
    assert reason(Block(1, size=128), side=24) is None  # of many products
    assert reason(Block(1), side=256) is None  # of many elements


def test_sizes_that_change(net):
    fused = fused_copy(net)
    for size in (12, 14, 16, 18):
        x = torch.randn(2, 3, size, size)
        torch.testing.assert_close(fused(x, arguments()[1]), net(x, arguments()[1]), rtol=1e-3, atol=1e-4)


def test_under_torch_compile(net):
    compiled = torch.compile(net, backend="film_kernels", options={"backend": "eager", "convolutions": True})
    with counted_calls() as calls:
        found = compiled(*arguments())
    assert len(calls) == 6
    torch.testing.assert_close(found, net(*arguments()), rtol=1e-3, atol=1e-4)


# frozen


@pytest.fixture
def frozen(net):
    return fused_copy(net, frozen=True)


def same(found, expected):
    """But for the rounding of sums, which is a part of the largest results."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.detach().abs().max()))


def test_frozen_is_equal_and_packs_once(net, frozen, monkeypatch):
    made = []
    pack = packed.CpuConvFilm.pack
    monkeypatch.setattr(packed.CpuConvFilm, "pack", lambda *given: made.append(1) or pack(*given))
    with torch.no_grad(), use_backend("cpu"):
        for seed in range(3):
            same(frozen(*arguments(seed)), net(*arguments(seed)))
    assert len(made) == 6
    assert frozen.state_dict().keys() == net.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(frozen.state_dict().values(), net.state_dict().values(), strict=True))


@pytest.mark.parametrize("write", (
    lambda model: model.load_state_dict({k: v * 0.9 for k, v in model.state_dict().items()}),
    lambda model: model.second.weight.mul_(0.5), lambda model: model.norm.running_mean.add_(1.0),
    lambda model: model.norm.bias.add_(1.0), lambda model: model.scale.neg_(),
    lambda model: setattr(model.third, "weight", nn.Parameter(model.third.weight * 0.3)),
    lambda model: setattr(model.first.weight, "data", model.first.weight.data * 0.3),
), ids=("load_state_dict", "weight", "running_mean", "bias", "scale", "another", "data"))  # fmt: skip
def test_frozen_sees_what_is_written(net, frozen, write):
    with torch.no_grad():
        before = frozen(*arguments())
        for model in (net, frozen):
            write(model)
        same(frozen(*arguments()), net(*arguments()))
        assert not torch.allclose(before, frozen(*arguments()), rtol=1e-3, atol=1e-4)


def test_frozen_has_no_gradient(net, frozen):
    y = frozen(*arguments())
    same(y, net(*arguments()))
    with pytest.raises(RuntimeError, match=r"frozen=True.*torch\.no_grad"):
        y.sum().backward()


def test_frozen_has_no_gradient_of_what_was_folded():
    """Of a BatchNorm alone, in a model whose weights are frozen in the other sense."""
    model = nn.Sequential(nn.Conv2d(3, K, 3).requires_grad_(False), nn.BatchNorm2d(K), nn.ReLU()).eval()
    frozen, x = fused_copy(model, frozen=True), torch.randn(2, 3, 12, 12)
    with torch.inference_mode():
        same(frozen(x), model(x))
    y = frozen(x)
    same(y, model(x))
    with pytest.raises(RuntimeError, match=r"frozen=True.*torch\.no_grad"):
        y.sum().backward()


def test_frozen_says_so_of_what_requires_a_gradient_later():
    model = nn.Sequential(nn.Conv2d(3, K, 3), nn.BatchNorm2d(K), nn.ReLU()).eval().requires_grad_(False)
    frozen, x = fused_copy(model, frozen=True), torch.randn(2, 3, 12, 12)
    same(frozen(x), model(x))
    frozen[1].requires_grad_()
    with pytest.raises(RuntimeError, match="frozen=True"):
        frozen(x).sum().backward()


def test_what_was_made_goes_with_the_model(frozen):
    frozen(*arguments())  # recorded by autograd
    weights = [weakref.ref(p) for p in frozen.parameters()]
    of_frozen = {id(ref()) for ref in weights}
    assert sum(id(key) in of_frozen for key in packed._made) >= 3
    del frozen.forward
    torch._dynamo.reset()
    frozen.__dict__.clear()
    gc.collect()
    assert not any(ref() is not None for ref in weights)


def test_frozen_follows_the_models_mode(net, frozen):
    with torch.no_grad():
        for training in (False, True, False):
            for model in (net, frozen):
                model.train(training)
                torch.manual_seed(0)
            before = net.norm.num_batches_tracked.clone()
            torch.manual_seed(0)
            expected = net(*arguments())
            torch.manual_seed(0)
            same(frozen(*arguments()), expected)
            assert (net.norm.num_batches_tracked > before) == training


def test_frozen_copies_and_pickles(net, frozen):
    with torch.no_grad():
        expected = net(*arguments())
        frozen(*arguments())
        for other in (copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
            same(other(*arguments()), expected)
            other.last.bias.add_(1)
            same(other(*arguments()), expected + 1)
        same(frozen(*arguments()), expected)


def test_frozen_dtypes(net):
    for dtype in (torch.float64, torch.bfloat16):
        model = copy.deepcopy(net).to(dtype)
        given = arguments(dtype=dtype)
        with torch.no_grad():
            found, expected = fused_copy(model, frozen=True)(*given), net.double()(*(one.double() for one in given))
            error = [float((one.double() - expected).norm() / expected.norm()) for one in (found, model(*given))]
        assert error[0] <= max(2 * error[1], 1e-13)


def test_derived_weights_are_taken_as_they_are_at_each_call(net):
    net.double()
    torch.nn.utils.parametrizations.weight_norm(net.third)
    frozen = fused_copy(net, frozen=True)
    with torch.no_grad():
        same(frozen(*arguments(dtype=torch.float64)), net(*arguments(dtype=torch.float64)))
        for p in chain(
            net.third.parametrizations.weight.parameters(), frozen.third.parametrizations.weight.parameters()
        ):
            p.mul_(1.1)
        same(frozen(*arguments(dtype=torch.float64)), net(*arguments(dtype=torch.float64)))
