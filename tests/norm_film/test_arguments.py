"""Bad input gets an error that names the argument, before any kernel runs; and what is meant is taken, whatever it
comes as and whatever was called before."""

from __future__ import annotations

import fractions
import inspect

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import film_kernels
from film_kernels import norm_film, reference
from film_kernels.problems import norm_film as problem

X, C, G = torch.randn(4, 6, 9, 8), torch.randn(6), torch.randn(4, 6)
RUNNING = {"running_mean": torch.zeros(6), "running_var": torch.ones(6)}
BATCH = {"norm": "batch", "num_groups": None}
TOKENS = {"norm": "channel", "num_groups": None, "channel_dim": -1}
IN_FRONT = {**TOKENS, "input": X.movedim(1, -1), "gamma": G[..., None, None]}
ALONE = dict.fromkeys(("weight", "bias", "gamma", "beta"))
NAN, INF = float("nan"), float("inf")

BAD = [
    ("input", TypeError, "got ndarray", {"input": X.numpy()}),
    ("input", TypeError, "got NoneType", {"input": None}),
    ("input", TypeError, "got list", {"input": [1.0]}),
    ("input", TypeError, "got NoneType", {"input": None, **BATCH}),
    ("input", TypeError, "got NoneType", {"input": None, **BATCH, **RUNNING}),
    ("input", TypeError, "got float", {"input": 1.0, "gamma_offset": torch.tensor(1.0)}),
    ("input", TypeError, "floating-point", {**ALONE, "input": X.int()}),
    ("input", TypeError, "floating-point", {**ALONE, "input": X > 0}),
    ("input", ValueError, r"\(N, C, \*spatial\).* got \(6,\)", {"input": C}),
    ("input", ValueError, r"got \(\)", {"input": torch.tensor(1.0)}),
    ("input", ValueError, r"got \(\)", {"input": torch.tensor(1.0), "gamma_offset": torch.tensor(1.0), "gamma": None}),
    ("input", ValueError, "up to 3 spatial", {"input": X[..., None, None]}),
    ("input", ValueError, "at least one channel", {**ALONE, "input": X[:, :0]}),
    ("input", ValueError, r"more than one .* got \(1, 6, 1\)", {**ALONE, **BATCH, "input": X[:1, :, :1, 0]}),
    ("norm", ValueError, "'group', 'batch', 'channel', 'rms', 'l2'", {"norm": "layer"}),
    ("norm", ValueError, "must be one of", {"norm": None}),
    ("norm", ValueError, "must be one of", {"norm": ["group"]}),
    ("norm", ValueError, "must be one of", {"norm": 1}),
    ("num_groups", ValueError, "must be given", {"num_groups": None}),
    ("num_groups", ValueError, "divide the channels of input, 6, got 4", {"num_groups": 4}),
    ("num_groups", ValueError, "at least 1, got 0", {"num_groups": 0}),
    ("num_groups", ValueError, "at least 1, got -3", {"num_groups": -3}),
    ("num_groups", ValueError, "at most", {"num_groups": 2**40}),
    ("num_groups", TypeError, "integer", {"num_groups": 2.0}),
    ("num_groups", TypeError, "integer", {"num_groups": "2"}),
    ("num_groups", ValueError, "None for norm='batch'", {"norm": "batch"}),
    ("num_groups", ValueError, "None for norm='rms'", {"norm": "rms"}),
    ("weight", TypeError, "got list", {"weight": [1.0] * 6}),
    ("weight", ValueError, r"\(C,\) = \(6,\), got \(5,\)", {"weight": C[:5]}),
    ("weight", ValueError, r"got \(1, 6\)", {"weight": C[None]}),
    ("weight", ValueError, r"got \(\)", {"weight": torch.tensor(1.0)}),
    ("weight", TypeError, "float32, got torch.float64", {"weight": C.double()}),
    ("weight", TypeError, "float32, got torch.bfloat16", {"weight": C.bfloat16()}),
    ("weight", TypeError, "float32, got torch.int64", {"weight": C.long()}),
    ("weight", ValueError, "device of input", {"weight": C.to("meta")}),
    ("bias", ValueError, r"\(C,\) = \(6,\), got \(7,\)", {"bias": torch.randn(7)}),
    ("bias", TypeError, "got float", {"bias": 0.5}),
    ("bias", TypeError, "float16", {"bias": C.half()}),
    ("bias", TypeError, "float32", {"input": X.bfloat16(), "gamma": None, "beta": None, "bias": C.bfloat16()}),
    ("bias", TypeError, "bfloat16", {"input": X.bfloat16(), "weight": C.bfloat16(), "gamma": None, "beta": None}),
    ("weight", TypeError, "got torch.float16", {**ALONE, "input": X.bfloat16(), "weight": C.half()}),
    ("weight", TypeError, "float64", {"input": X.double(), "gamma": None, "beta": None}),
    ("gamma", ValueError, r"\(4, 6\), \(1, K\) = \(1, 6\), .* got \(3, 6\)", {"gamma": G[:3]}),
    ("gamma", ValueError, r"got \(4,\)", {"gamma": G[:, 0]}),
    ("gamma", TypeError, "got float", {"gamma": 1.5}),
    ("gamma", TypeError, "got float", {"gamma": 1.5, "gamma_offset": torch.tensor(1.0)}),
    ("gamma", TypeError, "bfloat16", {"gamma": G.bfloat16()}),
    ("gamma", TypeError, "got torch.float32", {"input": X.bfloat16(), "beta": None}),
    ("beta", ValueError, r"got \(4, 6, 9, 8\)", {"beta": X}),
    ("beta", ValueError, r"got \(\)", {"beta": torch.tensor(1.0)}),
    ("beta", ValueError, "device of input", {"beta": G.to("meta")}),
    ("gamma", ValueError, r"\(1, 1, K\) or \(N, 1, 1, K\) = \(4, 1, 1, 6\), got \(4, 6, 1, 1\)", IN_FRONT),
    ("eps", ValueError, "at least 0, got -1", {"eps": -1.0}),
    ("eps", ValueError, "finite", {"eps": NAN}),
    ("eps", ValueError, "finite", {"eps": INF}),
    ("eps", TypeError, "number", {"eps": None}),
    ("eps", TypeError, "number", {"eps": "small"}),
    ("eps", ValueError, "more than 0 for norm='batch'", {"eps": 0.0, **BATCH}),
    ("activation", ValueError, "'silu', .*got 'swish'", {"activation": "swish"}),
    ("activation", ValueError, "must be one of", {"activation": None}),
    ("activation", ValueError, "must be one of", {"activation": F.silu}),
    ("film_position", ValueError, "'post', 'pre', got 'middle'", {"film_position": "middle"}),
    ("negative_slope", TypeError, "number", {"negative_slope": "steep"}),
    ("negative_slope", TypeError, "requires a gradient", {"negative_slope": torch.tensor(0.1, requires_grad=True)}),
    ("gamma_offset", ValueError, "finite", {"gamma_offset": NAN}),
    ("gamma_offset", TypeError, "number", {"gamma_offset": None}),
    ("gamma_offset", ValueError, r"one number, got shape \(6,\)", {"gamma_offset": C}),
    ("channel_dim", ValueError, "must be 1 for norm='group', got -1", {"channel_dim": -1}),
    ("channel_dim", ValueError, "must be 1 for norm='batch'", {**BATCH, "channel_dim": -1}),
    ("channel_dim", ValueError, "1 or -1, got 2", {"channel_dim": 2}),
    ("channel_dim", ValueError, "1 or -1, got 0", {**TOKENS, "channel_dim": 0}),
    ("channel_dim", ValueError, "at least -1, got -2", {**TOKENS, "channel_dim": -2}),
    ("channel_dim", TypeError, "integer", {"channel_dim": 1.0}),
    ("channel_dim", TypeError, "integer", {"channel_dim": None}),
    ("running_mean", ValueError, "None for norm='group'", RUNNING),
    ("running_var", ValueError, "None for norm='rms'", {"norm": "rms", "num_groups": None, "running_var": C}),
    ("running_mean", TypeError, "got list", {**BATCH, "running_mean": [0.0] * 6}),
    ("running_mean", ValueError, r"\(C,\) = \(6,\), got \(5,\)", {**BATCH, "running_mean": C[:5]}),
    ("running_var", ValueError, r"\(C,\) = \(6,\), got \(6, 1\)", {**BATCH, "running_var": C[:, None]}),
    ("running_var", TypeError, "floating-point", {**BATCH, "running_var": C.long()}),
    ("running_var", ValueError, "device of input", {**BATCH, "running_var": C.to("meta")}),
    ("running_mean and running_var", ValueError, "must be given", {**BATCH, "training": False}),
    ("running_mean and running_var", ValueError, "must be given", {**BATCH, "training": False, "running_mean": C}),
    ("momentum", TypeError, "number", {**BATCH, **RUNNING, "momentum": None}),
    ("momentum", TypeError, "number", {**BATCH, **RUNNING, "momentum": "fast"}),
    ("momentum", ValueError, "finite", {**BATCH, **RUNNING, "momentum": NAN}),
    ("backend", ValueError, "must be one of", {"backend": "gpu"}),
    ("backend", ValueError, "must be one of", {"backend": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "error", "words", "changed"), BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_input_names_the_argument(name, error, words, changed):
    arguments = {"input": X, "norm": "group", "num_groups": 2, "weight": C, "bias": C, "gamma": G, "beta": G, **changed}
    with pytest.raises(error, match=words) as caught:
        norm_film(**arguments)
    assert str(caught.value).startswith(name)
    if "backend" not in changed:
        with pytest.raises(error, match=words):
            reference.norm_film(**arguments)


def test_nothing_is_written_where_a_call_raises():
    mean, variance = torch.zeros(6), torch.ones(6)
    for wrong in ({"gamma": G[:3]}, {"activation": "swish"}, {"backend": "cuda"}, {"eps": -1.0}):
        with pytest.raises(ValueError):
            norm_film(X, "batch", running_mean=mean, running_var=variance, **wrong)
    assert not mean.any() and (variance == 1).all()


@pytest.mark.parametrize("function", [norm_film, reference.norm_film])
def test_the_record_has_the_options_in_the_order_of_the_arguments(function):
    names = [name for name in inspect.signature(function).parameters if name in problem.OPTIONS]
    assert tuple(names) == problem.OPTIONS
    assert set(problem.TENSORS) < set(inspect.signature(function).parameters)


@pytest.mark.parametrize("channel_dim", [1, -1])
@pytest.mark.parametrize("shape", [(4, 6), (1, 6), (6,), (4, 6, 1, 1), (1, 6, 1, 1), (6, 1, 1)], ids=str)
def test_shapes_of_gamma_and_beta(backend, shape, channel_dim):
    x = X if channel_dim == 1 else X.movedim(1, -1).contiguous()
    if channel_dim == -1 and len(shape) > 2:
        shape = (1, 1, 6) if len(shape) == 3 else (shape[0], 1, 1, 6)
    factors = [torch.randn(shape, requires_grad=True) for _ in range(2)]
    y = norm_film(x, "channel", None, C, C, *factors, channel_dim=channel_dim, backend=backend)
    wide = (-1, 6, 1, 1) if channel_dim == 1 else (-1, 1, 1, 6)
    gamma, beta = (t.detach().reshape(wide).requires_grad_() for t in factors)
    z = F.layer_norm(x.movedim(channel_dim, -1), (6,), C, C).movedim(-1, channel_dim)
    expected = F.silu(gamma * z + beta)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    y.square().sum().backward(), expected.square().sum().backward()
    for found, plain in zip(factors, (gamma, beta), strict=True):
        assert found.grad.shape == shape
        torch.testing.assert_close(found.grad, plain.grad.reshape(shape), rtol=1e-3, atol=1e-2)


def test_as_many_samples_as_channels(backend):
    """(K, 1, 1) and (N, K) where N is K, and one of each size."""
    x = torch.randn(6, 6, 6, 6)
    for shape in ((6, 6), (6,), (6, 1, 1), (6, 6, 1, 1), (1, 6)):
        gamma = torch.randn(shape)
        y = norm_film(x, "rms", gamma=gamma, activation="none", backend=backend)
        expected = F.rms_norm(x.movedim(1, -1), (6,), eps=1e-5).movedim(-1, 1) * gamma.reshape(-1, 6, 1, 1)
        torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("name", ["num_groups", "channel_dim"])
def test_a_fraction_is_refused_whatever_was_called_before(name):
    given = {"input": X, "norm": "group", "num_groups": 1}
    for value in (1.0, (1.0,), torch.tensor(1.0), np.float64(1), "1", {1: 1}, b"1"):
        for _ in range(2):
            with pytest.raises((TypeError, ValueError), match=f"^{name} must be"):
                norm_film(**{**given, name: value})
            norm_film(**{**given, name: 1})


@pytest.mark.parametrize("kind", [np.int64, torch.tensor, lambda v: torch.tensor([v])])
def test_integers_of_other_kinds(kind):
    box = kind(2)
    expected = F.silu(F.group_norm(X, 2))
    torch.testing.assert_close(norm_film(X, "group", box), expected)
    if isinstance(box, torch.Tensor):
        torch.testing.assert_close(norm_film(X, "group", box.fill_(3)), F.silu(F.group_norm(X, 3)))


@pytest.mark.parametrize("kind", [float, np.float32, torch.tensor, fractions.Fraction, lambda v: torch.tensor([v])])
def test_numbers_of_other_kinds_are_read_at_every_call(kind):
    for slope, eps in ((0.25, 0.5), (0.5, 2.0)):
        y = norm_film(X, "group", 2, activation="leaky_relu", negative_slope=kind(slope), eps=kind(eps))
        torch.testing.assert_close(y, F.leaky_relu(F.group_norm(X, 2, eps=eps), slope), rtol=1e-4, atol=1e-4)
    eps = torch.tensor(0.5)
    before = norm_film(X, "group", 2, eps=eps)
    assert not torch.equal(before, norm_film(X, "group", 2, eps=eps.fill_(2.0)))


@pytest.mark.parametrize("channel_dim", [1, -1])
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
def test_gamma_offset_may_be_learnt(backend, given, shape, channel_dim):
    gamma = torch.randn(4, 8 if channel_dim == -1 else 6) if given else None
    offset = torch.nn.Parameter(torch.zeros(shape))
    for value in (0.5, 2.0):
        with torch.no_grad():
            offset.fill_(value)
        options = {"activation": "none", "channel_dim": channel_dim, "backend": backend}
        y = norm_film(X, "channel", gamma=gamma, gamma_offset=offset, **options)
        z = F.layer_norm(X.movedim(channel_dim, -1), (X.shape[channel_dim],)).movedim(-1, channel_dim)
        scale = (gamma if given else torch.ones(1, z.shape[channel_dim])) + value
        scale = scale[:, :, None, None] if channel_dim == 1 else scale[:, None, None]
        torch.testing.assert_close(y, scale * z, rtol=1e-4, atol=1e-4)
        (gradient,) = torch.autograd.grad((y * X).sum(), offset)
        torch.testing.assert_close(gradient, (z * X).sum().reshape(shape), rtol=1e-3, atol=1e-2)


def test_the_last_dimension_may_be_named_by_its_number():
    x, gamma = torch.randn(2, 5, 6), torch.randn(2, 6)
    one, other = (norm_film(x, "channel", gamma=gamma, channel_dim=dim) for dim in (-1, 2))
    assert torch.equal(one, other)
    flat = torch.randn(3, 6)  # whose channels are both
    one, other = (norm_film(flat, "rms", channel_dim=dim) for dim in (-1, 1))
    assert torch.equal(one, other)


def test_complex_tensors_go_where_plain_pytorch_takes_them_or_are_refused_by_it():
    x = torch.randn(2, 4, 5, dtype=torch.complex64)
    with pytest.raises((RuntimeError, NotImplementedError, TypeError, ValueError)):
        norm_film(x, "group", 2)


def test_a_pin_outside_a_call_holds(backend):
    with film_kernels.use_backend(backend):
        torch.testing.assert_close(norm_film(X, "group", 2), F.silu(F.group_norm(X, 2)), rtol=1e-4, atol=1e-4)


def test_kernels_for_gpus_refuse_tensors_of_the_cpu():
    with pytest.raises(ValueError, match="backend 'cuda' cannot serve this call"):
        norm_film(X, "group", 2, backend="cuda")
