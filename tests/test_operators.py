"""What watches the dispatcher: torch.library's own checks, torch.compile, torch.func, fake tensors."""

from __future__ import annotations

import pytest
import torch

import film_kernels
from tests.helpers.cases import INTERPRETED, Case, tensors_of

CASE = Case("operator", (2, 4, 7, 8), (9, 4, 3, 3), padding=1)
SERVING = ["cpu", "vendor", "reference"]


def _options(backend, activation="relu", position="post"):
    return ((1, 1), (1, 1), (1, 1), (1, 1), 1, activation, 0.1, position, 1.0, backend)


@pytest.mark.parametrize("backend", ["cpu", "vendor", *INTERPRETED], indirect=True)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("activation", ["relu", "none"])
def test_opcheck_of_the_registered_operators(backend, channels_last, activation):
    tensors = tensors_of(CASE, torch.float64, channels_last=channels_last)
    options = _options(backend, activation)
    leaves = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors]
    torch.library.opcheck(torch.ops.film_kernels.conv_film.default, (*leaves, *options, True))
    y, kept = torch.ops.film_kernels.conv_film(*tensors, *options, True)
    for wanted in ([True] * 5, [True, False, False, True, False]):
        torch.library.opcheck(
            torch.ops.film_kernels.conv_film_backward.default,
            (torch.randn_like(y), kept, *tensors, *options, wanted),
            test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
        )


def _operator_arguments(x, w, b, gamma, beta):
    names = ("input", "weight", "bias", "gamma", "beta", "stride", "padding_before", "padding_after", "dilation")
    names += ("groups", "activation", "negative_slope", "film_position", "gamma_offset", "backend")
    return dict(zip(names, (x, w, b, gamma, beta, *_options("cpu")), strict=True))


BAD_CALLS = [
    ("stride", {"stride": [0, 1]}),
    ("stride", {"stride": []}),
    ("stride", {"stride": [1, 1, 1]}),
    ("padding_before", {"padding_before": [-1, 0]}),
    ("padding_after", {"padding_after": [0, 0, 0]}),
    ("padding_before", {"padding_before": [2**62, 0]}),
    ("dilation", {"dilation": [0, 1]}),
    ("groups", {"groups": 0}),
    ("groups", {"groups": -1}),
    ("groups", {"groups": 2**40}),
    ("groups", {"groups": 2, "weight": torch.randn(9, 2, 3, 3)}),
    ("activation", {"activation": "swish"}),
    ("film_position", {"film_position": ""}),
    ("negative_slope", {"negative_slope": float("nan")}),
    ("gamma_offset", {"gamma_offset": float("inf")}),
    ("backend", {"backend": "gpu"}),
    ("input", {"weight": torch.randn(9, 4, 3)}),
    ("weight", {"weight": torch.randn(0, 4, 3, 3)}),
    ("weight", {"weight": torch.randn(9, 4, 3, 3).double()}),
    ("weight", {"weight": torch.randn(9, 4, 3, 3).to("meta")}),
    ("input", {"input": torch.randn(4, 7, 8)}),
    ("input", {"input": torch.randn(2, 5, 7, 8)}),
    ("input", {"input": torch.ones(2, 4, 7, 8, dtype=torch.int32)}),
    ("input", {"input": torch.randn(2, 4, 7, 8).to_sparse()}),
    ("bias", {"bias": torch.randn(8)}),
    ("bias", {"bias": torch.randn(9).half()}),
    ("gamma", {"gamma": torch.randn(9)}),
    ("gamma", {"gamma": torch.randn(1, 9)}),
    ("beta", {"beta": torch.randn(2, 9, 1, 1)}),
]


@pytest.mark.parametrize(("name", "changed"), BAD_CALLS)
def test_the_registered_operator_checks_what_it_is_given(name, changed):
    arguments = _operator_arguments(*tensors_of(CASE, torch.float32))
    torch.ops.film_kernels.conv_film(**arguments, keep=True)
    with pytest.raises((ValueError, TypeError), match=f"^{name}"):
        torch.ops.film_kernels.conv_film(**{**arguments, **changed}, keep=True)


def _spoilt(tensor):
    yield tensor[:-1]
    yield tensor[..., :-1]
    yield tensor.unsqueeze(0)
    yield tensor.new_empty(0)
    yield tensor.to("meta")
    yield tensor.to(torch.complex64)
    yield torch.cat([tensor, tensor])


@pytest.mark.parametrize("backend", ["cpu", "vendor", "reference"])
@pytest.mark.parametrize("position", ["post", "pre"])
def test_the_registered_backward_checks_what_it_is_given(backend, position):
    arguments = _operator_arguments(*tensors_of(CASE, torch.float32))
    arguments.update(backend=backend, film_position=position)
    y, kept = torch.ops.film_kernels.conv_film(**arguments, keep=True)
    backward, grad = torch.ops.film_kernels.conv_film_backward, torch.randn_like(y)
    found = backward(grad, kept, **arguments, wanted=[True] * 5)
    leaves = [arguments[name].requires_grad_() for name in ("input", "weight", "bias", "gamma", "beta")]
    options = {"activation": "relu", "film_position": position, "gamma_offset": 1.0, "backend": "reference"}
    expected = torch.autograd.grad(film_kernels.conv_film(*leaves, padding=1, **options), leaves, grad)
    for result, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(result, exact, rtol=1e-4, atol=1e-4)
    arguments = {name: a.detach() if isinstance(a, torch.Tensor) else a for name, a in arguments.items()}
    for wanted in ([], [True] * 4, [True] * 6):
        with pytest.raises(ValueError, match=r"^wanted must have 5 values"):
            backward(grad, kept, **arguments, wanted=wanted)
    for bad in (*_spoilt(grad), grad.double(), grad.to(torch.uint8)):
        with pytest.raises(ValueError, match=r"^grad must be"):
            backward(bad, kept, **arguments, wanted=[True] * 5)
    if backend != "reference":
        for bad in (*_spoilt(kept), kept.float() + 0.5 if backend == "cpu" else kept.double()):
            with pytest.raises((RuntimeError, ValueError), match=r"^kept"):
                backward(grad, bad, **arguments, wanted=[True] * 5)
    with pytest.raises(ValueError, match=r"^groups"):
        backward(grad, kept, **{**arguments, "groups": 0}, wanted=[True] * 5)
    # a gradient of what is not there is an empty tensor
    arguments["bias"] = arguments["beta"] = None
    y, kept = torch.ops.film_kernels.conv_film(**arguments, keep=True)
    assert [t.numel() for t in backward(grad, kept, **arguments, wanted=[False, False, True, True, True])] == [
        0, 0, 0, 18, 0,
    ]  # fmt: skip


@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck_of_the_compiled_kernels(channels_last):
    x, w, b, gamma, beta = tensors_of(CASE, torch.float32, channels_last=channels_last)
    geometry = [1, 1, 1, 7, 1, 1, 1, 8, 1, 1, 0]
    numbers = [0.0, 1.0]
    assert film_kernels.available_backends()["cpu"] is None
    kernels = torch.ops.film_kernels_cpu
    checks = ("test_schema", "test_faketensor")
    forward = (x, w, b, gamma, beta, geometry, numbers, True, channels_last)
    torch.library.opcheck(kernels.forward.default, forward, test_utils=checks)
    y, bits = kernels.forward(*forward)
    grad = torch.randn_like(y)
    torch.library.opcheck(
        kernels.grad_input.default,
        (grad, bits, w, gamma, list(x.shape), channels_last, geometry, numbers),
        test_utils=checks,
    )
    torch.library.opcheck(
        kernels.grad_weight.default,
        (grad, bits, x, w, b, gamma, True, False, True, True, geometry, numbers),
        test_utils=checks,
    )


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", [None, *SERVING])
def test_compiles_without_a_break(name, dynamic):
    torch._dynamo.reset()
    layer = film_kernels.FusedFiLM(4, 9, 3, padding=1, gamma_offset=1)

    def call(x, gamma, beta):
        y = film_kernels.conv_film(
            x * 2, layer.weight, layer.bias, gamma, beta, padding=1, activation="leaky_relu", backend=name
        )
        return layer(y[:, :4], gamma, beta).sin()

    compiled = torch.compile(call, fullgraph=True, dynamic=dynamic)
    for batch in (2, 5):
        case = Case("compiled", (batch, 4, 7, 8), (9, 4, 3, 3))
        results = []
        for f in (call, compiled):
            x, _, _, gamma, beta = (t.requires_grad_() for t in tensors_of(case, torch.float32))
            layer.zero_grad()
            f(x, gamma, beta).sum().backward()
            results.append([x.grad, gamma.grad, beta.grad, layer.weight.grad, layer.bias.grad])
        for eager, traced in zip(*results, strict=True):
            torch.testing.assert_close(traced, eager, rtol=1e-4, atol=1e-4)


def test_compiles_for_inference():
    torch._dynamo.reset()
    layer, x, gamma = film_kernels.FusedFiLM(4, 9, 3).eval(), torch.randn(2, 4, 7, 8), torch.randn(2, 9)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x, gamma, gamma), layer(x, gamma, gamma))


def test_frozen_convolution_compiles():
    torch._dynamo.reset()
    layer, x = film_kernels.FusedFiLM(4, 9, 3).requires_grad_(False), torch.randn(2, 4, 7, 8)
    gamma = torch.randn(2, 9, requires_grad=True)
    torch.compile(layer, fullgraph=True)(x, gamma, None).sum().backward()
    compiled, gamma.grad = gamma.grad, None
    layer(x, gamma, None).sum().backward()
    torch.testing.assert_close(compiled, gamma.grad, rtol=1e-4, atol=1e-4)


def test_torch_func_goes_through_the_plain_formula():
    x, w, b, gamma, beta = tensors_of(CASE, torch.float64)
    call = lambda x, gamma: film_kernels.conv_film(x, w, b, gamma, beta, padding=1)  # noqa: E731
    many = torch.stack([x, x + 1, x - 1])
    mapped = torch.func.vmap(call, in_dims=(0, None))(many, gamma)
    torch.testing.assert_close(mapped, torch.stack([call(one, gamma) for one in many]))
    gradient = torch.func.grad(lambda g: call(x, g).square().sum())(gamma)
    leaf = gamma.clone().requires_grad_()
    call(x, leaf).square().sum().backward()
    torch.testing.assert_close(gradient, leaf.grad)
    _, tangent = torch.func.jvp(lambda g: call(x, g), (gamma,), (torch.ones_like(gamma),))
    torch.testing.assert_close(tangent, call(x, gamma + 1) - call(x, gamma))
    with pytest.raises(ValueError, match="'cpu' cannot serve"), film_kernels.use_backend("cpu"):
        torch.func.vmap(call, in_dims=(0, None))(many, gamma)


def test_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        layer = film_kernels.FusedFiLM(4, 9, 3)
        x = torch.randn(2, 4, 7, 8).to(memory_format=torch.channels_last)
        y = layer(x, torch.randn(2, 9), torch.randn(9))
    assert y.shape == (2, 9, 5, 6) and y.is_contiguous(memory_format=torch.channels_last)


def test_eager_and_operator_are_the_same_bits():
    tensors = [t.requires_grad_() for t in tensors_of(CASE, torch.float32)]
    eager = film_kernels.conv_film(*tensors, padding=1, gamma_offset=1, backend="cpu")
    operator, _ = torch.ops.film_kernels.conv_film(*tensors, *_options("cpu"), True)
    assert torch.equal(eager, operator)
    grad = torch.randn_like(eager)
    for a, b in zip(
        torch.autograd.grad(eager, tensors, grad), torch.autograd.grad(operator, tensors, grad), strict=True
    ):
        assert torch.equal(a, b)
    assert eager.grad_fn.name() == "_ConvFilmBackward"
