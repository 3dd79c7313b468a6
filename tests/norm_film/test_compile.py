"""torch.compile of norm_film and its layers, without a break."""

from __future__ import annotations

import pytest
import torch

from film_kernels import BatchNormFiLM, LayerNormFiLM, NormFiLM, norm_film
from tests.helpers.norm_cases import SERVING, Case, tensors_of
from tests.helpers.subprocesses import run_python

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("name", "dynamic"), [(None, True), *((name, name != "vendor") for name in SERVING)])
def test_compiles_without_a_break(name, dynamic):
    """With batches and positions of any number, where they are dynamic."""
    torch._dynamo.reset()
    layer = NormFiLM(2, 8, gamma_offset=1, activation="mish")

    def call(x, gamma, beta):
        y = norm_film(x * 2, "rms", None, layer.weight, None, gamma, beta, film_position="post", backend=name)
        return layer(norm_film(y, "batch", gamma=gamma, backend=name), gamma, beta).sin()

    code = "inductor" if name is None else "aot_eager"  # which takes ten times as long
    compiled = torch.compile(call, fullgraph=True, dynamic=dynamic, backend=code)
    shapes = ((2, 8, 6, 5), (5, 8, 9, 7), (3, 8, 4, 4)) if dynamic else ((2, 8, 6, 5), (2, 8, 6, 5))
    for shape in shapes:
        results = []
        for f in (call, compiled):
            x, _, _, gamma, beta = (
                t.requires_grad_() for t in tensors_of(Case(shape, "group", 2, dtype=torch.float32))
            )
            layer.zero_grad()
            f(x, gamma, beta).sum().backward()
            results.append([x.grad, gamma.grad, beta.grad, layer.weight.grad, layer.bias.grad])
        for eager, traced in zip(*results, strict=True):
            torch.testing.assert_close(traced, eager, rtol=1e-3, atol=1e-3)


def test_compiles_with_sizes_that_are_marked_dynamic():
    torch._dynamo.reset()
    count = 0

    def counting(graph, example):
        nonlocal count
        count += 1
        return graph.forward

    layer = LayerNormFiLM(8)
    compiled = torch.compile(layer, fullgraph=True, backend=counting)
    for shape in ((2, 5, 8), (3, 9, 8), (7, 4, 8)):
        x, gamma = torch.randn(shape), torch.randn(shape[0], 8)
        torch._dynamo.mark_dynamic(x, 0), torch._dynamo.mark_dynamic(x, 1), torch._dynamo.mark_dynamic(gamma, 0)
        torch.testing.assert_close(compiled(x, gamma, gamma), layer(x, gamma, gamma))
    assert count == 1


@pytest.mark.parametrize("train", [True, False])
def test_a_batch_norm_compiles_and_keeps_its_statistics(train):
    torch._dynamo.reset()
    layers = [BatchNormFiLM(8).train(train) for _ in range(2)]
    compiled = torch.compile(layers[1], fullgraph=True, backend="aot_eager")
    for _ in range(3):
        x, gamma = torch.randn(4, 8, 5, 6), torch.randn(4, 8)
        torch.testing.assert_close(compiled(x, gamma, gamma), layers[0](x, gamma, gamma), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layers[1].state_dict(), layers[0].state_dict())


def test_compiles_for_inference():
    torch._dynamo.reset()
    layer, x, gamma = NormFiLM(2, 8).eval(), torch.randn(2, 8, 5, 6), torch.randn(2, 8)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x, gamma, gamma), layer(x, gamma, gamma))


FIRST = """
import torch
from film_kernels import NormFiLM
layer, x = NormFiLM(2, 4), torch.randn(2, 4, 5, 6)
compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
torch.testing.assert_close(compiled, layer(x))
print("compiled")
"""


def test_the_first_call_of_a_process_may_be_a_compiled_one():
    done = run_python("-c", FIRST)
    assert done.returncode == 0 and done.stdout == "compiled\n", done.stderr[-2000:]
