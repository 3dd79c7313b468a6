"""The output has the input's memory format, and so has its gradient; the weight's gradient has the weight's strides;
tensors that are not dense are refused by name or served as plain PyTorch does."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from film_kernels import layouts, norm_film
from tests.helpers.fakes import assert_fakes_are_like_results
from tests.helpers.norm_cases import SERVING, Case, ours, plain, tensors_of
from tests.test_layouts import Counted, images, random_view

NORMS = (("group", 2), ("batch", None), ("channel", None), ("rms", None), ("l2", None))
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
SMOOTH = ("gelu_tanh", 0.01, "pre", 0.0)  # activation and what comes after it, as the registered operators take them


@pytest.mark.parametrize("activation", ["silu", "none"])
@pytest.mark.parametrize("rank", [4, 5])
@pytest.mark.parametrize(("norm", "groups"), NORMS)
def test_the_output_and_the_gradient_have_the_inputs_memory_format(backend, norm, groups, rank, activation):
    shape = (2, 6, 3, 4, 5)[:rank]
    case = Case(shape, norm, groups, activation)
    plain_format, last = torch.contiguous_format, FORMATS[rank]
    wide = torch.randn(2, 9, 3, 4, 5, dtype=torch.float64)[(..., *(0,) * (5 - rank))].contiguous(memory_format=last)
    for x, format in (
        (torch.randn(shape, dtype=torch.float64), plain_format),
        (torch.randn(shape, dtype=torch.float64).contiguous(memory_format=last), last),
        (wide[:, 1:7], last),  # a slice of channels_last
        (torch.randn(*shape[:-1], 2 * shape[-1], dtype=torch.float64)[..., ::2], plain_format),
    ):
        x = x.detach().requires_grad_()
        y = ours(case, [x, *tensors_of(case)[1:]], backend)
        assert y.shape == x.shape
        if backend == "reference" and norm in ("channel", "rms"):
            continue  # the library's layer_norm writes the channels last
        assert y.is_contiguous(memory_format=format)
        without = [x.detach(), *tensors_of(case)[1:]]
        assert ours(case, without, backend).is_contiguous(memory_format=format)
        for grad in (torch.randn(shape, dtype=torch.float64), torch.randn_like(y)):
            (gradient,) = torch.autograd.grad(y, x, grad, retain_graph=True)
            assert gradient.is_contiguous(memory_format=format) or backend == "reference"


def test_channels_that_come_last_stay_so(backend):
    for shape, norm in itertools.product(((2, 5, 8), (2, 3, 4, 8), (2, 8)), ("channel", "rms", "l2")):
        case = Case(shape, norm, channel_dim=-1)
        y = ours(case, tensors_of(case), backend)
        assert y.is_contiguous()
        turned = case.input[:-2] + case.input[:-3:-1]
        tensors = [torch.randn(turned, dtype=torch.float64).mT, *tensors_of(case)[1:]]
        torch.testing.assert_close(ours(case, tensors, backend), plain(case, tensors))


@pytest.mark.parametrize(("norm", "groups"), NORMS)
@pytest.mark.parametrize("shape", [(2, 6, 5, 4), (3, 6), (2, 6, 7)], ids=str)
def test_the_gradient_of_the_weight_has_its_strides(backend, norm, groups, shape):
    case = Case(shape, norm, groups)
    x, w, b, gamma, beta = tensors_of(case)
    for weight, stride in (
        (w, 1),
        (torch.randn(12, dtype=torch.float64)[::2], 1),  # not dense: contiguous, as autograd's contract has it
        (w[:1].expand(6), 1),
    ):
        leaf = weight.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(ours(case, [x, leaf, b, gamma, beta], backend).sum(), leaf)
        assert gradient.stride() == (stride,) == layouts.gradient_strides(leaf)
        (expected,) = torch.autograd.grad(plain(case, [x, leaf, b, gamma, beta]).sum(), leaf)
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("backend", [name for name in SERVING if name != "reference"], indirect=True)
@pytest.mark.parametrize(("norm", "groups"), NORMS)
def test_what_a_compiler_is_told_of_strides_is_true(backend, norm, groups):
    """Fake and real results of the registered operators, for random views with sizes of 1."""
    generator = random.Random(1)
    for _ in range(25):
        x = random_view(generator, (1, 1, 2, 5), channels=generator.choice((2, 4)))
        c = x.shape[1]
        w, b = torch.randn(2 * c)[::2], torch.randn(c)
        gamma = torch.randn(x.shape[0], 2 * c).chunk(2, 1)[0]
        options = (norm, groups, 1e-5, *SMOOTH, 1, backend)
        assert_fakes_are_like_results("norm_film", (x, w, b, gamma), options)


@pytest.mark.parametrize("name", images())
def test_compiled_calls_with_sizes_of_one(name):
    torch._dynamo.reset()
    x = images()[name]
    w, gamma = torch.randn(x.shape[1], requires_grad=True), torch.randn(x.shape[0], x.shape[1])
    call = lambda x, w, gamma: norm_film(x * 2, "channel", None, w, None, gamma)  # noqa: E731
    found, expected = torch.compile(call, fullgraph=True, backend="aot_eager")(x, w, gamma), call(x, w, gamma)
    torch.testing.assert_close(found, expected)
    grad = torch.randn_like(expected)
    (gradient,), (eager,) = (torch.autograd.grad(y, w, grad) for y in (found, expected))
    torch.testing.assert_close(gradient, eager, rtol=1e-4, atol=1e-4)


def _others(name):
    """Tensors that are not dense, of the kinds that the argument can have."""
    dense = torch.randn({"input": (2, 4, 8, 8), "gamma": (2, 4), "beta": (2, 4)}.get(name, (4,)))
    yield dense.to_sparse()
    yield dense.to_mkldnn()
    if dense.dim() > 1:
        yield torch.nested.nested_tensor(list(dense))
        yield torch.nested.nested_tensor(list(dense), layout=torch.jagged)
    if dense.dim() == 2:
        yield dense.to_sparse_csr()


@pytest.mark.parametrize("norm", ["channel", "batch"])
@pytest.mark.parametrize("name", ["input", "weight", "bias", "gamma", "beta", "running_mean"])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:Sparse CSR tensor support")
def test_what_is_not_dense_is_named(name, norm):
    if name == "running_mean" and norm != "batch":
        return
    for other in _others(name):
        arguments = {"input": torch.randn(2, 4, 8, 8), "norm": norm, name: other}
        with pytest.raises(TypeError, match=f"^{name} must be a dense"):
            norm_film(**arguments)


def test_subclasses_that_know_standard_operators_work_as_in_plain_pytorch():
    case = Case((2, 4, 5, 6), "group", 2, dtype=torch.float32)
    tensors = tensors_of(case)
    wrapped = [Counted(t).requires_grad_() for t in tensors]
    y = ours(case, wrapped)
    assert isinstance(y, Counted) and any("group_norm" in name for name in Counted.names)
    torch.testing.assert_close(y.detach().inner, plain(case, tensors))
    y.sum().backward()
    assert isinstance(wrapped[1].grad, Counted)
    with pytest.raises(ValueError, match=r"'vendor' cannot serve this call: .*tensor subclasses"):
        ours(case, wrapped, "vendor")
