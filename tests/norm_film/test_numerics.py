"""Inputs that are not dense normal noise: as far off as twice plain PyTorch at most, and where plain PyTorch itself
fails, no worse than the input's own rounding allows."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from film_kernels import film, norm_film
from tests.helpers.exact import Real
from tests.helpers.norm_cases import Case, assert_as_good_as_plain, gradients, ours, plain, tensors_of

pytestmark = pytest.mark.usefixtures("one_thread")
CENTRED = (("group", 2), ("group", 1), ("batch", None), ("channel", None))
NORMS = (*CENTRED, ("rms", None), ("l2", None))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("contiguous", "channels_innermost")
EPS = {dtype: torch.finfo(dtype).eps for dtype in (*DTYPES, torch.float64)}


def changed(case, change):
    """A draw whose input is `change(input)`."""

    def draw(seed):
        x, *others = tensors_of(case, seed)
        return [change(x), *others]

    return draw


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("norm", "groups"), CENTRED)
def test_a_mean_of_10000(backend, norm, groups, dtype, layout):
    """Where plain PyTorch has lost digits by adding squares, we have not: the output is as near as the rounding of
    elements of 1e4 is to their variance."""
    case = Case((2, 6, 12, 13), norm, groups, layout=layout, dtype=dtype)
    results = assert_as_good_as_plain(case, backend, changed(case, lambda x: x + 1e4))
    error, _, size = results["output"]
    assert error <= 4e4 * EPS[dtype] * size


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_running_statistics_of_a_mean_of_10000(backend, dtype, layout):
    """Also where the kernels do not tell what they found: off by little more than their own rounding. In float64 cpu
    joins the means of blocks, whose own rounding is larger beside a variance of 1."""
    roundings = 1e3 if (backend, dtype) == ("cpu", torch.float64) else 8
    case = Case((8, 6, 32, 33), "batch", layout=layout, dtype=dtype)
    x, *others = tensors_of(case)
    x, kept = x.add_(1e4), [torch.zeros(6, dtype=dtype) for _ in range(2)]
    ours(case, [x, *others], backend, momentum=1.0, running_mean=kept[0], running_var=kept[1])
    exact = x.numpy().astype(Real)
    count = exact[:, 0].size
    for found, expected in zip(kept, (exact.mean((0, 2, 3)), exact.var((0, 2, 3)) * count / (count - 1)), strict=True):
        assert (np.abs(found.numpy() - expected) <= roundings * EPS[dtype] * expected).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sums_over_large_maps_in_float64(layout):
    """Parts of a map are added by halves: one after another, 80 or 600 of them lose up to four roundings of the sum."""
    case = Case((1, 2, 400, 401), "group", 1, layout=layout, activation="none", dtype=torch.float64)
    x, w, b, gamma, beta = tensors_of(case)
    grad = torch.empty_like(x).uniform_(1, 2, generator=torch.Generator().manual_seed(0))
    found = torch.autograd.grad(ours(case, [x, w, b, gamma, beta.requires_grad_()], "cpu"), beta, grad)[0]
    exact = torch.tensor([math.fsum(grad[0, channel].flatten().tolist()) for channel in range(2)], dtype=torch.float64)
    assert ((found[0] - exact).abs() <= EPS[torch.float64] * exact).all(), (found[0] / exact - 1).tolist()


@pytest.mark.parametrize("mean", [0.0, 3.0, 30.0])
def test_evaluation_beside_a_mean(backend, mean):
    """By running statistics: output and the five gradients, over several draws together."""
    squares = torch.zeros(6, 2)
    for seed in range(20):
        case = Case((2, 8, 12, 12), "batch", dtype=torch.float32)
        tensors = [t + mean if at == 0 else t for at, t in enumerate(tensors_of(case, seed))]
        running = mean + 0.1 * torch.randn(8), torch.rand(8) + 0.5
        exact = _evaluated(_evaluated_plainly, [t.double() for t in tensors], [t.double() for t in running])
        plain = _evaluated(_evaluated_plainly, tensors, running)
        found = _evaluated(functools.partial(_evaluated_by, backend), tensors, running)
        for at, (a, b, e) in enumerate(zip(found, plain, exact, strict=True)):
            squares[at] += torch.stack([(a - e).square().sum(), (b - e).square().sum()]).float()
    ratios = (squares[:, 0] / squares[:, 1]).sqrt()
    assert (ratios <= 2).all(), ratios


def _evaluated_plainly(x, w, b, gamma, beta, mean, variance):
    return F.silu(film(F.batch_norm(x, mean, variance, w, b), gamma, beta))


def _evaluated_by(backend, *tensors):
    *given, mean, variance = tensors
    x, w, b, gamma, beta = given
    options = {"running_mean": mean, "running_var": variance, "training": False, "backend": backend}
    return norm_film(x, "batch", None, w, b, gamma, beta, **options)


def _evaluated(call, tensors, running):
    """The output and the gradients, in float64."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    y = call(*leaves, *running)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y)
    return [t.double() for t in (y.detach(), *torch.autograd.grad(y, leaves, grad))]


@pytest.mark.parametrize("value", [0.1, 10000.1, -3e-5, 0.0])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("norm", "groups"), NORMS)
def test_constant_groups(backend, norm, groups, dtype, layout, value):
    case = Case((3, 6, 7, 9), norm, groups, layout=layout, dtype=dtype)
    assert_as_good_as_plain(case, backend, changed(case, lambda x: torch.full_like(x, value)))


@pytest.mark.parametrize("shape", [(2, 3, 1), (2, 2, 3), (3, 1)], ids=str)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_groups_of_three_elements(backend, shape, dtype):
    """One of three channels, two of three positions each, and a batch of three. Where these nearly coincide the errors
    of dx are as much larger: a few draws make up most of the sum, and it takes many until it is not their luck."""
    case = Case(shape, "group" if len(shape) > 2 else "batch", math.prod(shape[1:]) // 3 or None, dtype=dtype)
    assert_as_good_as_plain(case, backend, draws=200)


@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        *((size, torch.float32) for size in (1e30, 1e18, 1e-18, 1e-30)),
        *((size, dtype) for size in (1e30, 1e-30) for dtype in (torch.bfloat16, torch.float64)),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("norm", "groups", "eps"), [(*norm, eps) for norm in NORMS for eps in (1e-5, 0.0) if eps or norm[0] != "batch"]
)
def test_values_far_from_1(backend, norm, groups, eps, dtype, size):
    """In float32 the squares of the largest are infinite and those of the smallest are 0. What is finite in plain
    PyTorch must be so here."""
    case = Case((2, 6, 5, 7), norm, groups, eps=eps, dtype=dtype)
    draw = changed(case, lambda x: x * size)
    assert_as_good_as_plain(case, backend, draw)
    tensors, grad = draw(0), torch.randn(case.input).to(dtype)
    found, theirs = (
        gradients(lambda leaves, f=f: f(case, leaves), tensors, grad) for f in (lambda c, t: ours(c, t, backend), plain)
    )
    for one, other in zip(found, theirs, strict=True):
        assert (one.isfinite() | ~other.isfinite()).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("norm", "groups"), NORMS)
def test_an_outlier_in_first_place(backend, norm, groups, dtype, layout):
    """What is taken away before squares are added may not be the group's first element."""

    def spoil(x):
        x = x.clone(memory_format=torch.preserve_format)
        x[:, :, 0, 0] = 1e6
        return x

    case = Case((2, 6, 12, 13), norm, groups, layout=layout, dtype=dtype)
    assert_as_good_as_plain(case, backend, changed(case, spoil))


@pytest.mark.parametrize("far", [30.0, 300.0])
@pytest.mark.parametrize("mean", [0.0, 1.0], ids=["gradient around 0", "gradient around 1"])
@pytest.mark.parametrize("position", ["pre", "post"])
@pytest.mark.parametrize("activation", ["silu", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_bias_that_cancels(backend, dtype, activation, position, mean, far):
    """Channels far from their group's mean, which the bias brings back to 0: dgamma is small, and its parts are not."""
    case = Case((2, 6, 12, 13), "group", 2, activation, position, dtype=dtype, absent=("beta",))

    def draw(seed):
        x, w, _, gamma, beta = tensors_of(case, seed)
        x = (x.double() + torch.tensor([-far, 0, far] * 2)[:, None, None]).to(dtype)
        xhat = torch.group_norm(x.double(), 2)
        return [x, w, (-w.double() * xhat.mean((0, 2, 3))).to(dtype), gamma, beta]

    assert_as_good_as_plain(case, backend, draw, change=lambda grad: grad * 0.1 + mean if mean else grad)


@pytest.mark.parametrize(("norm", "groups"), NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sparse_gradients(backend, norm, groups, dtype):
    case = Case((2, 6, 12, 13), norm, groups, "relu", dtype=dtype)
    keep = torch.rand(case.input, generator=torch.Generator().manual_seed(0)) < 1 / 16
    assert_as_good_as_plain(case, backend, change=lambda grad: grad * keep)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ["silu", "relu", "none", "mish", "gelu"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("norm", "groups"), NORMS)
def test_what_is_not_finite_stays_in_its_group(backend, norm, groups, value, activation, layout):
    case = Case((2, 6, 5, 7), norm, groups, activation, dtype=torch.float32, layout=layout)
    tensors, grad = tensors_of(case), torch.randn(case.input)
    before = gradients(lambda leaves: ours(case, leaves, backend), tensors, grad)
    tensors[0] = tensors[0].clone(memory_format=torch.preserve_format)
    tensors[0][1, 4, 2, 3] = value
    found = gradients(lambda leaves: ours(case, leaves, backend), tensors, grad)
    expected = gradients(lambda leaves: plain(case, leaves), tensors, grad)
    touched = torch.zeros(case.input, dtype=torch.bool)
    channels = slice(0 if groups == 1 else 3, None)
    touched[{"group": (1, channels), "batch": (slice(None), 4)}.get(norm, (1, slice(None), 2, 3))] = True
    for one, other, untouched in zip(found[:2], expected[:2], before[:2], strict=True):
        assert torch.equal(one[~touched], untouched[~touched])
        assert (other.isnan() <= one.isnan()).all()
    torch.testing.assert_close(found[0], expected[0], equal_nan=True, rtol=1e-4, atol=1e-4)
    for one, other in zip(found[2:], expected[2:], strict=True):  # sums over what is touched and what is not
        assert (other.isnan() <= one.isnan()).all()
        assert not one.isnan().all() or other.isnan().all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["weight", "bias", "gamma", "beta", "grad"])
@pytest.mark.parametrize("activation", ["silu", "none"])
@pytest.mark.parametrize("position", ["pre", "post"])
def test_what_is_not_finite_in_the_other_tensors(backend, name, value, position, activation):
    """It reaches what it reaches in plain PyTorch. Infinite factors, multiplied with one another before they meet the
    input, may make NaN of what is infinite there."""
    case = Case((2, 6, 5, 7), "group", 2, activation, position, dtype=torch.float32)
    tensors, grad = tensors_of(case), torch.randn(case.input)
    by_ours, by_plain = lambda leaves: ours(case, leaves, backend), lambda leaves: plain(case, leaves)
    whole = [t.clone() for t in tensors], grad.clone()
    spoilt = dict(zip(("input", "weight", "bias", "gamma", "beta", "grad"), (*tensors, grad), strict=True))[name]
    spoilt.view(-1)[spoilt.numel() // 2] = value
    expected, found, before = (gradients(call, *given) for call, given in (
        (by_plain, (tensors, grad)), (by_ours, (tensors, grad)), (by_plain, whole),
    ))  # fmt: skip
    assert any(not t.isfinite().all() for t in expected)
    for one, other, unspoilt in zip(found, expected, before, strict=True):
        assert (~other.isfinite() <= ~one.isfinite()).all()
        assert math.isinf(value) or torch.equal(one.isnan(), other.isnan())
        here = other == unspoilt if math.isinf(value) else other.isfinite()
        torch.testing.assert_close(one[here], other[here], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("activation", ["silu", "sigmoid"])
def test_groups_of_many_channels_with_few_positions(backend, activation, dtype):
    """The sums of a group are those of its channels, of which there are as many as elements elsewhere."""
    case = Case((1, 512, 4), "group", 1, activation, dtype=dtype, absent=("weight", "bias", "gamma", "beta"))
    assert_as_good_as_plain(case, backend, draws=16)


@pytest.mark.parametrize("channel_dim", [1, -1])
@pytest.mark.parametrize("position", ["pre", "post"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_vectors_shorter_than_eps(backend, dtype, position, channel_dim):
    """norm="l2" divides them by a constant; among others that are longer."""
    shape = (2, 3, 6, 7) if channel_dim == 1 else (2, 6, 7, 3)
    case = Case(shape, "l2", None, "tanh", position, 1.0, eps=1.8, channel_dim=channel_dim, dtype=dtype)
    lengths = tensors_of(case)[0].double().norm(dim=channel_dim)
    assert 0.2 < (lengths < 1.8).double().mean() < 0.8
    assert_as_good_as_plain(case, backend)
