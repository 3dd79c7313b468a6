"""The CPU kernels are held to the rule where draws are not dense normal noise: every path, with every kind of
bench/draws.py. `python -m bench.errors` prints the same ratios."""

from __future__ import annotations

import functools

import pytest
import torch

from bench import errors
from bench.draws import KINDS, draw
from bench.errors import LAYERS, Layer, main, measure
from film_kernels import conv_film, reference
from tests.helpers.cases import Case, hold_to_the_rule, run

BY_NAME = {layer.name: layer for layer in LAYERS}
OURS = functools.partial(conv_film, backend="cpu")
CANCELS = "mean taken away"  # by the bias, from an input whose gradient has a mean too


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_errors_of_cpu_kernels(layer, kind):
    ratios = measure(layer, kind, draws=2)
    assert all(ratio <= errors.MOST for ratio in ratios.values()), ratios


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("kind", (CANCELS, "image", "max pool 4", "constant weight"))
@pytest.mark.parametrize("name", ("planes", "1x1", "direct, groups", "3x3 large", "1x3", "5x5", "7x7"))
def test_errors_of_cpu_kernels_in_16_bits(name, kind, dtype):
    ratios = measure(BY_NAME[name], kind, dtype, draws=1)
    assert all(ratio <= errors.MOST for ratio in ratios.values()), ratios


@pytest.mark.parametrize(
    "layer",
    (
        Layer("planes", (2, 3, 12, 14), (5, 3, 3, 3), 1, film_position="pre"),
        Layer("1x1", (2, 24, 12, 12), (24, 24, 1, 1), activation="leaky_relu"),
        Layer("stride", (2, 16, 17, 17), (24, 16, 3, 3), 1, 2),
        Layer("groups", (2, 16, 12, 12), (16, 8, 3, 3), 1, groups=2),
    ),
    ids=lambda layer: layer.name,
)
def test_cpu_keeps_the_digits_of_float64_where_the_bias_takes_a_mean_away(layer):
    case = Case(
        layer.name, layer.input, layer.weight, layer.stride, layer.padding, 1, layer.groups, layer.activation,
        layer.film_position,
    )  # fmt: skip

    def drawn(seed):
        return draw(CANCELS, layer, torch.Generator().manual_seed(seed))

    def with_a_mean(grad):
        return torch.where(grad == 0, 0, 1 + 0.1 * grad)

    hold_to_the_rule(case, drawn, lambda t, grad: run(case, t, grad, "cpu", torch.float64), 4, with_a_mean)


def gradients(call, layer, tensors, grad):
    leaves = [t.clone().requires_grad_() for t in tensors]
    y = call(*leaves, **errors.options_of(layer))
    return torch.autograd.grad(y, leaves, grad)


@pytest.mark.parametrize("kind", (CANCELS, "gradient 1 in 4"))
@pytest.mark.parametrize(
    "name", ("planes", "1x1", "direct, stride 2", "direct, blocks of input", "3x3 small", "3x3 large", "1x5", "7x7")
)
def test_cpu_gives_the_same_bits_on_any_number_of_threads(name, kind):
    layer = BY_NAME[name]
    tensors, grad = errors.drawn(layer, kind, torch.float32, 0)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append(gradients(OURS, layer, tensors, grad))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("value", (float("inf"), float("nan"), 1.5e38))
@pytest.mark.parametrize("name", ("planes", "1x1", "direct, 1d", "3x3 small, linear", "5x5"))
def test_cpu_keeps_what_is_not_finite_where_it_is_beside_a_mean(name, value):
    """The mean of a channel is taken out of all its elements: not where that would spread such a value."""
    layer = BY_NAME[name]
    tensors, grad = errors.drawn(layer, CANCELS, torch.float32, 0)
    tensors[0][0, 1].view(-1)[0] = value
    tensors[1].mul_(1e-3), grad.mul_(1e-2)
    ours, plain = (gradients(call, layer, tensors, grad) for call in (OURS, reference.conv_film))
    for found, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(found.isfinite(), expected.isfinite())


@pytest.mark.usefixtures("one_thread")
def test_bench_errors_prints_ratios_and_says_whether_all_are_allowed(capsys, monkeypatch):
    words = ["--layers", "1x1 of few; planes of", "--kinds", "normal; max pool 2", "--draws", "1"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 2 * 2 + 1 and lines[1].startswith("planes of groups") and "max pool 2" in lines[2]
    monkeypatch.setattr(errors, "MOST", 0.1)
    assert main(words) == 1
    assert "*" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--kinds", "no such kind"])
