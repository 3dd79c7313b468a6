"""Memory formats are PyTorch's, and tensors that are not dense are refused by name or served as plain PyTorch does."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
import torch.nn.functional as F

from film_kernels import FusedFiLM, conv_film, layouts
from tests.helpers.cases import EMULATED, INTERPRETED
from tests.helpers.fakes import assert_fakes_are_like_results

LAST = torch.channels_last
OURS = ("cpu", "vendor")


def random_view(generator: random.Random, sizes=(1, 1, 2, 3, 6), channels: int | None = None) -> torch.Tensor:
    """A 4d tensor in a random order of dimensions, sliced out of a larger one at times."""
    shape = [generator.choice(sizes) for _ in range(4)]
    shape[1] = channels or shape[1]
    larger = [size + generator.choice((0, 0, 0, 2)) for size in shape]
    order = generator.sample(range(4), 4)
    view = torch.randn([larger[d] for d in order]).permute([order.index(d) for d in range(4)])
    return view[tuple(slice(size) for size in shape)]


def test_strides_are_those_of_torch_empty():
    for shape in itertools.product((1, 2, 5), repeat=4):
        for last, format in ((False, torch.contiguous_format), (True, LAST)):
            assert layouts.strides_of(shape, last) == torch.empty(shape, memory_format=format).stride(), shape
    shape = (2, 3, 4, 5, 6)
    assert layouts.strides_of(shape, True) == torch.empty(shape, memory_format=torch.channels_last_3d).stride()


def test_the_format_is_that_of_conv2d():
    """Where conv2d writes channels_last, so is it here. (A channels_last tensor with odd strides of dimensions of size
    1, as an image that was permuted and unsqueezed has, conv2d takes for contiguous; here it is what it is.)"""
    generator, seen = random.Random(0), set()
    for _ in range(500):
        x = random_view(generator)
        w = torch.randn(4, x.shape[1], 1, 1)
        last = layouts.writes_channels_last(x, w)
        y = F.conv2d(x, w, padding=1)
        theirs = y.is_contiguous(memory_format=LAST) and not y.is_contiguous()
        assert last == (theirs or (x.is_contiguous(memory_format=LAST) and not x.is_contiguous()))
        seen.add((last, theirs))
    assert seen == {(True, True), (False, False), (True, False)}


@pytest.mark.parametrize("backend", ["cpu", "vendor", *INTERPRETED], indirect=True)
@pytest.mark.parametrize("slices", [
    (slice(None), slice(None), slice(None, None, 2), slice(1, -1)), (slice(1, 3), slice(None, 5)), (slice(None, 1),),
    (slice(None, None, 2),),
])  # fmt: skip
def test_sliced_channels_last_stays_channels_last(backend, slices):
    x = torch.randn(4, 8, 12, 10).to(memory_format=LAST)[slices]
    w, gamma = torch.randn(6, x.shape[1], 3, 3), torch.randn(x.shape[0], 6)
    y = conv_film(x, w, None, gamma, padding=1, backend=backend)
    expected = torch.relu(F.conv2d(x, w, padding=1)) * gamma[:, :, None, None]
    assert expected.is_contiguous(memory_format=LAST) and y.stride() == expected.stride()
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_channels_last_model_writes_channels_last(backend, kernel):
    """Its input need not be, as in nn.Conv2d."""
    layer = FusedFiLM(4, 6, kernel).to(memory_format=LAST)
    x = torch.randn(2, 4, 7, 8, requires_grad=True)
    convolution = F.conv2d(x, layer.weight, layer.bias)
    with_backend = conv_film(x, layer.weight, layer.bias, backend=backend)
    assert with_backend.stride() == convolution.stride() and with_backend.is_contiguous(memory_format=LAST)
    torch.testing.assert_close(with_backend, torch.relu(convolution), rtol=1e-4, atol=1e-4)
    wanted = (x, *layer.parameters())
    grad = torch.randn_like(convolution)
    found = torch.autograd.grad(with_backend, wanted, grad)
    for gradient, expected in zip(found, torch.autograd.grad(torch.relu(convolution), wanted, grad), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", [*OURS, *INTERPRETED, *EMULATED], indirect=True)
@pytest.mark.parametrize("shape", [(6, 4, 1, 1), (6, 4, 3, 3), (1, 4, 3, 3), (6, 1, 1, 3), (6, 1, 1, 1), (1, 1, 3, 1)])
def test_the_gradient_of_the_weight_has_its_strides(backend, shape):
    orders = list(itertools.permutations(range(4)))
    for order in orders if backend in OURS else orders[3::9]:
        w = torch.randn([shape[d] for d in order]).permute([order.index(d) for d in range(4)]).requires_grad_()
        x = torch.randn(2, shape[1], 5, 6)
        conv_film(x, w, backend=backend).sum().backward()
        operator = torch.ops.film_kernels.conv_film
        options = ((1, 1), (0, 0), (0, 0), (1, 1), 1, "relu", 0.1, "post", 0.0, "fast", backend, True)
        y, kept = operator(x, w.detach(), None, None, None, *options)
        wanted = [False, True, False, False, False]
        found = torch.ops.film_kernels.conv_film_backward(
            torch.ones_like(y), kept, x, w.detach(), None, None, None, *options[:-1], wanted
        )[1]
        assert found.stride() == w.stride()
        torch.testing.assert_close(found, w.grad, rtol=1e-4, atol=1e-4)
        assert w.grad.stride() == w.stride()
        (expected,) = torch.autograd.grad(torch.relu(F.conv2d(x, w)).sum(), w)
        torch.testing.assert_close(w.grad, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["cpu", "vendor"])
def test_what_a_compiler_is_told_of_strides_is_true(backend):
    """Fake and real results of the registered operators, for random views with sizes of 1."""
    generator = random.Random(1)
    for _ in range(60):
        x, w = random_view(generator, (1, 1, 2, 5)), random_view(generator, (1, 1, 3))
        w = random_view(generator, (1, 1, 3), channels=x.shape[1])
        b, gamma = torch.randn(w.shape[0]), torch.randn(x.shape[0], w.shape[0])
        options = ((1, 1), (2, 2), (2, 2), (1, 1), 1, "relu", 0.1, "post", 0.0, "fast", backend)
        assert_fakes_are_like_results("conv_film", (x, w, b, gamma), options)


def images():
    last = torch.randn(4, 8, 12, 10).to(memory_format=LAST)
    return {
        "an image of height, width and channels": torch.randn(12, 10, 8).permute(2, 0, 1)[None],
        "a sample of a batch": last[1].unsqueeze(0),
        "the first of a batch": last[:1],
        "the first of every second": last[::2][:1],
        "a sequence": torch.randn(2, 12, 8).permute(0, 2, 1).unsqueeze(-1),
        "one channel": last[:, :1],
        "one row": last[:, :, :1],
        "one column of one": last[:1, :, :, :1],
        "one position": last[:, :, :1, :1],
    }


@pytest.mark.parametrize("name", images())
def test_compiled_calls_with_sizes_of_one(name):
    torch._dynamo.reset()
    x = images()[name]
    w, gamma = torch.randn(6, x.shape[1], 3, 3, requires_grad=True), torch.randn(x.shape[0], 6)
    call = lambda x, w, gamma: conv_film(x * 2, w, None, gamma, padding=1)  # noqa: E731
    found, expected = torch.compile(call, fullgraph=True)(x, w, gamma), call(x, w, gamma)
    torch.testing.assert_close(found, expected)
    grad = torch.randn_like(expected)
    (gradient,), (plain,) = (torch.autograd.grad(y, w, grad) for y in (found, expected))
    torch.testing.assert_close(gradient, plain, rtol=1e-4, atol=1e-4)


def _others(name):
    """Tensors that are not dense, of the kinds that the argument can have."""
    shape = {"input": (2, 3, 8, 8), "weight": (4, 3, 3, 3), "bias": (4,), "gamma": (2, 4), "beta": (2, 4)}[name]
    dense = torch.randn(shape)
    yield dense.to_sparse()
    yield dense.to_mkldnn()
    if len(shape) > 1:
        yield torch.nested.nested_tensor(list(dense))
        yield torch.nested.nested_tensor(list(dense), layout=torch.jagged)
    if len(shape) == 2:
        yield dense.to_sparse_csr()


@pytest.mark.parametrize("name", ["input", "weight", "bias", "gamma", "beta"])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:Sparse CSR tensor support")
def test_what_is_not_dense_is_named(name):
    arguments = {"input": torch.randn(2, 3, 8, 8), "weight": torch.randn(4, 3, 3, 3)}
    for other in _others(name):
        with pytest.raises(TypeError, match=f"^{name} must be a dense"):
            conv_film(**{**arguments, name: other})


class Counted(torch.Tensor):
    """A subclass as DTensor is one: it says itself what each standard operator does to it, and knows no others."""

    names: tuple[str, ...] = ()

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=inner.device,
            requires_grad=inner.requires_grad,
        )  # fmt: skip

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        assert function.namespace == "aten", f"{function} is not known to this subclass"
        Counted.names = (*Counted.names, function.__name__)
        unwrap = lambda t: t.inner if isinstance(t, Counted) else t  # noqa: E731
        args, kwargs = torch.utils._pytree.tree_map(unwrap, (args, kwargs or {}))
        wrap = lambda t: Counted(t) if isinstance(t, torch.Tensor) else t  # noqa: E731
        return torch.utils._pytree.tree_map(wrap, function(*args, **kwargs))


def test_subclasses_that_know_standard_operators_work_as_in_plain_pytorch():
    x, w, b, gamma = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3), torch.randn(4), torch.randn(2, 4)
    wrapped = [Counted(t).requires_grad_() for t in (x, w, b, gamma)]
    y = conv_film(*wrapped, padding=1)
    assert isinstance(y, Counted) and any("convolution" in name for name in Counted.names)
    expected = torch.relu(F.conv2d(x, w, b, padding=1)) * gamma[:, :, None, None]
    torch.testing.assert_close(y.detach().inner, expected)
    y.sum().backward()
    assert isinstance(wrapped[1].grad, Counted)
    with pytest.raises(ValueError, match=r"'cpu' cannot serve this call: .*tensor subclasses"):
        conv_film(*wrapped, backend="cpu")
