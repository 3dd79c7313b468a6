"""What watches the dispatcher: torch.library's own checks, torch.compile, torch.func, fake tensors."""

from __future__ import annotations

import pytest
import torch

import film_kernels
from tests.helpers.cases import EXPECTED, INTERPRETED, Case, tensors_of
from tests.helpers.subjects import CONV, GROUP, each_operator

CASE = Case("operator", (2, 4, 7, 8), (9, 4, 3, 3), padding=1)


def _options(backend, activation="relu", position="post", keep="fast"):
    return ((1, 1), (1, 1), (1, 1), (1, 1), 1, activation, 0.1, position, 1.0, keep, backend)


@pytest.mark.parametrize("backend", ["cpu", "vendor", *INTERPRETED], indirect=True)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("activation", "keep"), [("relu", "fast"), ("relu", "least"), ("none", "bits"), ("gelu", "fast"), ("silu", "least")]
)
def test_opcheck_of_the_registered_operators(backend, channels_last, activation, keep):
    tensors = tensors_of(CASE, torch.float64, channels_last=channels_last)
    options = _options(backend, activation, keep=keep)
    leaves = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors]
    torch.library.opcheck(torch.ops.film_kernels.conv_film.default, (*leaves, *options, True))
    y, kept = torch.ops.film_kernels.conv_film(*tensors, *options, True)
    for wanted in ([True] * 5, [True, False, False, True, False]):
        torch.library.opcheck(
            torch.ops.film_kernels.conv_film_backward.default,
            (torch.randn_like(y), kept, *tensors, *options, wanted),
            test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
        )


BAD_CALLS_OF_CONV = [
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
    ("groups", {"groups": 3, "weight": torch.randn(16, 1, 3, 3)}),
    ("activation", {"activation": "swish"}),
    ("film_position", {"film_position": ""}),
    ("negative_slope", {"negative_slope": float("nan")}),
    ("gamma_offset", {"gamma_offset": float("inf")}),
    ("keep", {"keep": "most"}),
    ("backend", {"backend": "gpu"}),
    ("input", {"weight": torch.randn(16, 3, 3)}),
    ("weight", {"weight": torch.randn(0, 3, 3, 3)}),
    ("weight", {"weight": torch.randn(16, 3, 3, 3).double()}),
    ("weight", {"weight": torch.randn(16, 3, 3, 3).to("meta")}),
    ("input", {"input": torch.randn(3, 8, 8)}),
    ("input", {"input": torch.randn(2, 5, 8, 8)}),
    ("input", {"input": torch.ones(2, 3, 8, 8, dtype=torch.int32)}),
    ("input", {"input": torch.randn(2, 3, 8, 8).to_sparse()}),
    ("bias", {"bias": torch.randn(15)}),
    ("bias", {"bias": torch.randn(16).half()}),
    ("gamma", {"gamma": torch.randn(16)}),
    ("gamma", {"gamma": torch.randn(1, 16)}),
    ("beta", {"beta": torch.randn(2, 16, 1, 1)}),
]
BAD_CALLS_OF_NORM = [
    ("norm", {"norm": "layer"}),
    ("norm", {"norm": ""}),
    ("num_groups", {"num_groups": None}),
    ("num_groups", {"num_groups": 0}),
    ("num_groups", {"num_groups": -2}),
    ("num_groups", {"num_groups": 4}),
    ("num_groups", {"num_groups": 2**40}),
    ("num_groups", {"norm": "batch"}),
    ("eps", {"eps": -1e-9}),
    ("eps", {"eps": float("nan")}),
    ("eps", {"eps": float("inf")}),
    ("activation", {"activation": "swish"}),
    ("film_position", {"film_position": "middle"}),
    ("negative_slope", {"negative_slope": float("nan")}),
    ("gamma_offset", {"gamma_offset": float("inf")}),
    ("channel_dim", {"channel_dim": -1}),
    ("channel_dim", {"channel_dim": 2}),
    ("channel_dim", {"channel_dim": 2**62}),
    ("backend", {"backend": "gpu"}),
    ("input", {"input": torch.randn(6)}),
    ("input", {"input": torch.randn(2, 4, 1, 1, 1, 1)}),
    ("input", {"input": torch.ones(2, 4, 5, 6, dtype=torch.int32)}),
    ("input", {"input": torch.randn(2, 6, 5, 7).to_sparse()}),
    ("input", {"input": torch.randn(2, 0, 5, 6), "weight": None, "bias": None, "gamma": None, "beta": None}),
    ("weight", {"weight": torch.randn(5)}),
    ("weight", {"weight": torch.randn(6, 1)}),
    ("weight", {"weight": torch.randn(6).double()}),
    ("weight", {"weight": torch.randn(6).to("meta")}),
    ("bias", {"bias": torch.randn(3)}),
    ("bias", {"bias": torch.randn(6).half()}),
    ("gamma", {"gamma": torch.randn(6)}),
    ("gamma", {"gamma": torch.randn(1, 6)}),
    ("gamma", {"gamma": torch.randn(2, 6).bfloat16()}),
    ("beta", {"beta": torch.randn(2, 6, 1, 1)}),
]


@pytest.mark.parametrize(("subject", "name", "changed"), [
    *((CONV, *call) for call in BAD_CALLS_OF_CONV), *((GROUP, *call) for call in BAD_CALLS_OF_NORM),
])  # fmt: skip
def test_the_registered_operator_checks_what_it_is_given(subject, name, changed):
    arguments = subject.arguments(subject.tensors())
    subject.registered(**arguments, for_backward=True)
    with pytest.raises((ValueError, TypeError), match=f"^{name}"):
        subject.registered(**{**arguments, **changed}, for_backward=True)


def _spoilt(tensor):
    yield tensor[:-1]
    yield tensor[..., :-1]
    yield tensor.unsqueeze(0)
    yield tensor.new_empty(0)
    yield tensor.to("meta")
    yield tensor.to(torch.complex64)
    yield torch.cat([tensor, tensor])
    yield None


@pytest.mark.parametrize("backend", EXPECTED)
@pytest.mark.parametrize("position", ["post", "pre"])
@each_operator
def test_the_registered_backward_checks_what_it_is_given(subject, backend, position):
    tensors = subject.tensors()
    arguments = subject.arguments(tensors, backend, film_position=position)
    y, kept = subject.registered(**arguments, for_backward=True)
    backward, grad = subject.registered_backward, torch.randn_like(y)
    leaves = subject.leaves()
    expected = torch.autograd.grad(subject.plain(leaves, film_position=position), leaves, grad)
    for result, exact in zip(backward(grad, kept, **arguments, wanted=[True] * 5), expected, strict=True):
        torch.testing.assert_close(result, exact, rtol=1e-4, atol=1e-4)
    for wanted in ([], [True] * 4, [True] * 6):
        with pytest.raises(ValueError, match=r"^wanted must have 5 values"):
            backward(grad, kept, **arguments, wanted=wanted)
    for bad in (*_spoilt(grad), grad.double(), grad.to(torch.uint8)):
        with pytest.raises(ValueError, match=r"^grad must be"):
            backward(bad, kept, **arguments, wanted=[True] * 5)
    if backend != "reference":
        others = (kept.float() + 0.5,) if kept.dtype == torch.uint8 else (kept.double(), kept.half())
        for bad in (*_spoilt(kept), *others):
            with pytest.raises((RuntimeError, ValueError), match=r"^kept"):
                backward(grad, bad, **arguments, wanted=[True] * 5)
    groups = "groups" if subject is CONV else "num_groups"
    with pytest.raises(ValueError, match=f"^{groups}"):
        backward(grad, kept, **{**arguments, groups: 0}, wanted=[True] * 5)
    # a gradient of what is not there is an empty tensor
    arguments["bias"] = arguments["beta"] = None
    y, kept = subject.registered(**arguments, for_backward=True)
    assert [t.numel() for t in backward(grad, kept, **arguments, wanted=[False, False, True, True, True])] == [
        0, 0, 0, tensors[3].numel(), 0,
    ]  # fmt: skip


@pytest.mark.parametrize(("subject", "backend"), [(CONV, "cpu"), *((GROUP, name) for name in GROUP.keeping)], ids=str)
def test_eager_and_operator_are_the_same_bits(subject, backend):
    tensors = subject.leaves()
    eager = subject.ours(tensors, backend, gamma_offset=1.0)
    operator, _ = subject.registered(**subject.arguments(tensors, backend, gamma_offset=1.0), for_backward=True)
    assert torch.equal(eager, operator)
    grad = torch.randn_like(eager)
    for a, b in zip(
        torch.autograd.grad(eager, tensors, grad), torch.autograd.grad(operator, tensors, grad), strict=True
    ):
        assert torch.equal(a, b)
    assert eager.grad_fn.name() == ("_ConvFilmBackward" if subject is CONV else "_NormFilmBackward")


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
    smooth = (*geometry[:-2], 4, 1)
    torch.library.opcheck(kernels.forward.default, (*forward[:5], smooth, *forward[6:]), test_utils=checks)
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
    wanted, sizes = (True, True, False, True, True), ([*gamma.shape, 1, 1], [])
    torch.library.opcheck(
        kernels.backward.default,
        (grad, bits, x, w, b, gamma, *wanted, geometry, numbers, channels_last, *sizes),
        test_utils=checks,
    )
    torch.library.opcheck(kernels.forward_and_copy.default, (*forward, True, False), test_utils=checks)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", [None, *EXPECTED])
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
