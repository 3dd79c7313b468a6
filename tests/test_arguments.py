"""Bad input gets an error that names the argument, before any kernel runs; and what plain PyTorch takes is taken."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import film_kernels

X, W, B = torch.randn(4, 6, 9, 9), torch.randn(10, 6, 3, 3), torch.randn(10)
G = torch.randn(4, 10)

BAD = [
    ("input", TypeError, "got ndarray", {"input": X.numpy()}),
    (
        "input",
        TypeError,
        "floating-point",
        {"input": X.int(), "weight": W.int(), "bias": None, "gamma": None, "beta": None},
    ),
    ("input", ValueError, "3 without a batch", {"input": X[0, 0]}),
    ("input", ValueError, "6 channels", {"input": X[:, :5]}),
    ("input", ValueError, "smaller than the kernel", {"input": X[:, :, :1, :1]}),
    ("weight", TypeError, "got NoneType", {"weight": None}),
    ("weight", TypeError, "float32, got torch.float64", {"weight": W.double()}),
    ("weight", ValueError, "1, 2 or 3 kernel sizes", {"weight": W[:, :, 0, 0]}),
    ("weight", ValueError, "device of input", {"weight": W.to("meta")}),
    ("bias", ValueError, r"\(K,\) = \(10,\), got \(9,\)", {"bias": B[:9]}),
    ("bias", TypeError, "got list", {"bias": [0.0] * 10}),
    (
        "gamma",
        ValueError,
        r"\(4, 10\), \(1, K\) = \(1, 10\), \(K,\) = \(10,\), .* or .*\(4, 10, 1, 1\), got \(3, 10\)",
        {"gamma": G[:3]},
    ),
    ("beta", ValueError, r"got \(4, 10, 9, 9\)", {"beta": G[:, :, None, None].expand(4, 10, 9, 9)}),
    ("beta", ValueError, r"got \(\)", {"beta": torch.tensor(1.0)}),
    ("gamma", TypeError, "bfloat16", {"gamma": G.bfloat16()}),
    ("gamma", TypeError, "got float", {"gamma": 1.5}),
    ("stride", ValueError, "at least 1, got -1", {"stride": -1}),
    ("stride", ValueError, "at least 1", {"stride": (1, 0)}),
    ("stride", TypeError, "integer", {"stride": 1.5}),
    ("stride", ValueError, "2 of them", {"stride": (1, 1, 1)}),
    ("padding", ValueError, "at least 0", {"padding": -2}),
    ("padding", ValueError, "'same', 'valid'", {"padding": "full"}),
    ("padding", ValueError, "stride 1", {"padding": "same", "stride": 2}),
    ("dilation", ValueError, "at least 1", {"dilation": 0}),
    ("groups", ValueError, "divide", {"groups": 4, "weight": W[:, :2], "input": torch.randn(4, 8, 9, 9)}),
    ("groups", TypeError, "integer", {"groups": "two"}),
    ("activation", ValueError, "'relu', 'leaky_relu', 'silu', .*'elu', got 'swish'", {"activation": "swish"}),
    ("film_position", ValueError, "'post', 'pre', got 'middle'", {"film_position": "middle"}),
    ("negative_slope", TypeError, "number", {"negative_slope": "steep"}),
    ("gamma_offset", ValueError, "finite", {"gamma_offset": float("nan")}),
    ("backend", ValueError, "must be one of", {"backend": "gpu"}),
]


@pytest.mark.parametrize(("name", "error", "words", "changed"), BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_input_names_the_argument(name, error, words, changed):
    arguments = {"input": X, "weight": W, "bias": B, "gamma": G, "beta": G, **changed}
    with pytest.raises(error, match=words) as caught:
        film_kernels.conv_film(**arguments)
    assert str(caught.value).startswith(name)
    if "backend" not in changed:
        with pytest.raises(error, match=words):
            film_kernels.reference.conv_film(**arguments)


@pytest.mark.parametrize("shape", [(4, 10), (1, 10), (10,), (4, 10, 1, 1), (1, 10, 1, 1)])
def test_shapes_of_gamma_and_beta(backend, shape):
    factors = [torch.randn(shape, requires_grad=True) for _ in range(2)]
    y = film_kernels.conv_film(X, W, B, *factors, backend=backend)
    gamma, beta = (t.detach().reshape(-1, 10, 1, 1).requires_grad_() for t in factors)
    expected = gamma * F.relu(F.conv2d(X, W, B)) + beta
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    y.square().sum().backward(), expected.square().sum().backward()
    for found, plain in zip(factors, (gamma, beta), strict=True):
        assert found.grad.shape == shape
        torch.testing.assert_close(found.grad, plain.grad.reshape(shape), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("options", [
    {"padding": "same"}, {"padding": "valid"}, {"padding": "same", "dilation": 2},
    {"stride": [2, 1], "padding": [1, 2]}, {"stride": (2,)}, {"padding": torch.Size((1, 2))},
])  # fmt: skip
def test_geometry_is_written_as_for_conv2d(backend, options):
    y = film_kernels.conv_film(X, W, B, backend=backend, **options)
    torch.testing.assert_close(y, F.relu(F.conv2d(X, W, B, **options)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_input_without_a_batch(rank):
    x, w, gamma = torch.randn(6, *[8] * rank), torch.randn(10, 6, *[3] * rank), torch.randn(10)
    y = film_kernels.conv_film(x, w, None, gamma)
    convolution = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    expected = gamma.reshape(10, *[1] * rank) * F.relu(convolution(x, w))
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(film_kernels.conv_film(x, w, None, gamma[None]), expected, rtol=1e-4, atol=1e-4)


def test_output_keeps_the_memory_format_of_the_input(backend):
    assert film_kernels.conv_film(X, W, backend=backend).is_contiguous()
    last = X.to(memory_format=torch.channels_last)
    x = last.clone(memory_format=torch.preserve_format).requires_grad_()
    w = W.to(memory_format=torch.channels_last).requires_grad_()
    y = film_kernels.conv_film(x, w, backend=backend)
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.sum().backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


def test_complex_tensors_go_where_plain_pytorch_takes_them():
    x, w = X.to(torch.complex64), W.to(torch.complex64)
    torch.testing.assert_close(film_kernels.conv_film(x, w, activation="none"), F.conv2d(x, w))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_what_it_gives_conv2d(backend, dtype):
    w = W.clone().requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        y = film_kernels.conv_film(X, w, B, G, G, backend=backend)
        assert y.dtype == F.conv2d(X, W, B).dtype == dtype
    y.float().sum().backward()
    assert w.grad.dtype == torch.float32


def test_film_by_itself():
    x = torch.randn(4, 10, 5)
    torch.testing.assert_close(film_kernels.film(x, G, G), G[..., None] * x + G[..., None])
    torch.testing.assert_close(film_kernels.film(x[..., 0], G[0], None), G[0] * x[..., 0])
    with pytest.raises(ValueError, match=r"gamma must have shape .* got \(4, 9\)"):
        film_kernels.film(x, G[:, :9], G)
    with pytest.raises(TypeError, match="input must be"):
        film_kernels.film([1.0], G, G)
