"""How a GPU runs the kernels of both operators: streams, graphs, autocast, compilers, memory that holds anything."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from film_kernels import conv_film, norm_film
from film_kernels.backends import BACKENDS
from film_kernels.problems.conv_film import KEEPS
from tests.helpers import cases, norm_cases
from tests.helpers.card import DEVICE, place, poison

CONVS = (
    cases.Case("few_channels", (8, 3, 40, 40), (10, 3, 3, 3)),
    cases.Case("tensor_cores", (8, 64, 30, 30), (72, 64, 3, 3), padding=1),
)
NORMS = (
    norm_cases.Case((4, 64, 40, 40), "group", 8, dtype=torch.bfloat16),
    norm_cases.Case((1, 32, 128, 130), "group", 1, layout="channels_innermost", dtype=torch.bfloat16),
    norm_cases.Case((8, 48, 20, 20), "batch", None, "relu", dtype=torch.bfloat16),
    norm_cases.Case((4, 96, 24, 24), "rms", layout="channels_innermost", dtype=torch.bfloat16),
)
CALLS = [*(replace(case, keep=keep) for case in CONVS for keep in KEEPS), *NORMS]
Step = Callable[[list[Tensor]], list[Tensor]]


@pytest.fixture(params=CALLS, ids=lambda case: f"{case}-{case.keep}" if isinstance(case, cases.Case) else str(case))
def layer(request, backend) -> tuple[list[Tensor], Step]:
    """Five tensors on the device, in bfloat16 and the layout that most kernels serve, and a training step of them by
    the backend: [y, and the five gradients]."""
    case = request.param
    if isinstance(case, cases.Case):
        tensors = [place(t) for t in cases.tensors_of(case, torch.bfloat16, channels_last=case.weight[1] > 8)]
        problem = cases.problem_of(case, tensors)
        call = functools.partial(conv_film, **case.options, backend=backend)
        y = lambda leaves: call(*leaves, *case.geometry)  # noqa: E731
    else:
        tensors = [place(t) for t in norm_cases.tensors_of(case)]
        problem = norm_cases.problem_of(case, tensors)
        y = lambda leaves: norm_cases.ours(case, leaves, backend)  # noqa: E731
    reason = BACKENDS[backend].why_not(problem)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")

    def step(values: list[Tensor]) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in values]
        result = y(leaves)
        return [result.detach(), *torch.autograd.grad(result, leaves, torch.cos(result.detach().float()).to(result))]

    return tensors, step


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_the_same_bits_whatever_memory_held(layer):
    tensors, step = layer
    first = step(tensors)
    assert all(t.isfinite().all() for t in first)
    for _ in range(3):
        poison()
        assert_same(step(tensors), first)


def test_the_current_stream_is_the_one(layer, card):
    """The input is written on a stream that is late: a kernel on another would read what was there before."""
    tensors, step = layer
    expected, late = step(tensors), [torch.full_like(tensors[0], float("nan")), *tensors[1:]]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        late[0].copy_(tensors[0])
        found = step(late)
    torch.cuda.synchronize()
    assert_same(found, expected)


def test_two_streams_at_once(layer, card):
    tensors, step = layer
    inputs = [[tensors[0] * scale, *tensors[1:]] for scale in (1.0, -0.5)]
    expected = [step(values) for values in inputs]
    streams = [torch.cuda.Stream() for _ in inputs]
    torch.cuda.synchronize()
    found = []
    for _ in range(5):
        for stream, values in zip(streams, inputs, strict=True):
            with torch.cuda.stream(stream):
                found.append(step(values))
    torch.cuda.synchronize()
    for at, results in enumerate(found):
        assert_same(results, expected[at % 2])


def test_a_graph_is_captured_and_replayed(layer, card):
    tensors, step = layer
    others = [torch.empty_like(t).copy_(t.flip(0)) for t in tensors]
    expected = [step(values) for values in (tensors, others)]
    held = [t.clone(memory_format=torch.preserve_format) for t in tensors]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step(held)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step(held)
    for values, right in zip((tensors, others, tensors), (*expected, expected[0]), strict=True):
        for own, value in zip(held, values, strict=True):
            own.copy_(value)
        for result in results:
            result.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert_same(results, right)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(backend, dtype):
    """A convolution is computed in autocast's dtype, and a normalisation in the dtype that plain PyTorch's has."""
    case = cases.Case("autocast", (2, 16, 9, 8), (24, 16, 3, 3), padding=1)
    tensors = [place(t) for t in cases.tensors_of(case, torch.float32, channels_last=True)]
    cast = [t.to(dtype) for t in tensors]
    reason = BACKENDS[backend].why_not(cases.problem_of(case, cast))
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    leaves = [t.clone().requires_grad_() for t in tensors]
    with torch.autocast(DEVICE.type, dtype):
        y = conv_film(*leaves, *case.geometry, backend=backend)
    assert y.dtype == dtype
    # with gradients, for without them another kernel may serve, which rounds less
    assert torch.equal(y, conv_film(*(t.requires_grad_() for t in cast), *case.geometry, backend=backend))
    y.float().square().mean().backward()
    assert all(leaf.grad.dtype == torch.float32 and leaf.grad.isfinite().all() for leaf in leaves)
    x = y.detach()
    with torch.autocast(DEVICE.type, dtype):
        plain = torch.nn.functional.group_norm(x, 4)
        assert norm_film(x, "group", 4, activation="none").dtype == plain.dtype


@pytest.mark.parametrize("keep", KEEPS)
def test_torch_compile(backend, keep):
    case = replace(CONVS[1], keep=keep)
    tensors = [place(t) for t in cases.tensors_of(case, torch.bfloat16, channels_last=True)]
    reason = BACKENDS[backend].why_not(cases.problem_of(case, tensors))
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")

    def network(*leaves):
        y = conv_film(*leaves, *case.geometry, **case.options, backend=backend)
        return norm_film(y, "group", 8, activation="silu").float().square().mean()

    compiled = torch.compile(network, backend="aot_eager", fullgraph=True, dynamic=False)
    found, expected = ([t.clone().requires_grad_() for t in tensors] for _ in range(2))
    one, other = compiled(*found), network(*expected)
    torch.testing.assert_close(one, other)
    one.backward(), other.backward()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    torch.compiler.reset()
