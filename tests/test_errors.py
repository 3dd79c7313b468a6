"""The CPU kernels are held to the rule where draws are not dense normal noise: every path, with every kind of draw.
`python -m bench.errors` prints the same ratios."""

from __future__ import annotations

import functools

import pytest
import torch

from bench import errors
from bench.conv_layers import ConvLayer
from bench.draws import draw
from bench.errors import OPERATORS, drawn, gradients, main, measure
from tests.helpers.cases import Case, hold_to_the_rule, run

LAYERS = {layer.name: layer for tried in OPERATORS.values() for layer in tried.layers}
CANCELS = "mean taken away"  # by the bias, from an input whose gradient has a mean too
ROWS = [
    pytest.param(layer, kind, id=f"{operator}-{layer.name}-{name}")
    for operator, tried in OPERATORS.items() for layer in tried.layers for name, kind in tried.kinds.items()
]  # fmt: skip


def of_names(names, kinds):
    """A layer and a kind of its operator's for each pair of names."""
    return [
        pytest.param(layer, tried.kinds[kind], id=f"{operator}-{name}-{kind}")
        for operator, tried in OPERATORS.items()
        for name in names
        for layer in tried.layers
        if layer.name == name
        for kind in kinds
        if kind in tried.kinds
    ]


def by_cpu(layer):
    return functools.partial(layer.ours, backend="cpu")


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("layer", "kind"), ROWS)
def test_errors_of_cpu_kernels(layer, kind):
    ratios = measure(layer, kind, draws=2)
    assert all(ratio <= errors.MOST for ratio in ratios.values()), ratios


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize(("layer", "kind"), of_names(
    ("planes", "1x1", "direct, groups", "5x5, stride 2", "3x3 large", "1x3", "5x5", "7x7", "depthwise",
     "smooth, planes", "smooth, 3x3, pre", "group, planes", "batch, planes", "none, planes", "group, pixels, relu",
     "channel, planes, many", "l2, planes", "rms, pixels, post", "channel, pixels"),
    (CANCELS, "image", "max pool 4", "constant weight", "mean of 10000", "long input"),
))  # fmt: skip
def test_errors_of_cpu_kernels_in_16_bits(layer, kind, dtype):
    ratios = measure(layer, kind, dtype, draws=1)
    assert all(ratio <= errors.MOST for ratio in ratios.values()), ratios


@pytest.mark.parametrize(
    "layer",
    (
        ConvLayer("planes", (2, 3, 12, 14), (5, 3, 3, 3), 1, film_position="pre"),
        ConvLayer("1x1", (2, 24, 12, 12), (24, 24, 1, 1), activation="leaky_relu"),
        ConvLayer("stride", (2, 16, 17, 17), (24, 16, 3, 3), 1, 2),
        ConvLayer("groups", (2, 16, 12, 12), (16, 8, 3, 3), 1, groups=2),
        ConvLayer("depthwise", (2, 20, 12, 13), (20, 1, 5, 5), 2, groups=20),
    ),
    ids=lambda layer: layer.name,
)
def test_cpu_keeps_the_digits_of_float64_where_the_bias_takes_a_mean_away(layer):
    case = Case(
        layer.name, layer.input, layer.weight, layer.stride, layer.padding, 1, layer.groups, layer.activation,
        layer.film_position,
    )  # fmt: skip

    def with_a_bias(seed):
        return draw(OPERATORS["conv_film"].kinds[CANCELS], layer, torch.Generator().manual_seed(seed))

    def with_a_mean(grad):
        return torch.where(grad == 0, 0, 1 + 0.1 * grad)

    hold_to_the_rule(case, with_a_bias, lambda t, grad: run(case, t, grad, "cpu", torch.float64), 4, with_a_mean)


@pytest.mark.parametrize(("layer", "kind"), of_names(
    ("planes", "1x1", "direct, stride 3", "3x3, stride 2", "5x5, stride 2", "direct, blocks of input", "3x3 small",
     "3x3 large", "1x5", "7x7",
     "depthwise", "depthwise, stride 2, pre", "depthwise, 1d",
     "smooth, 1x1, pre", "smooth, direct", "smooth, 3x3",
     "group, planes, relu", "group, parts of rows", "group, too large to keep", "batch, planes", "none, planes",
     "group, pixels", "batch, pixels", "channel, planes", "l2, planes", "rms, tokens", "channel, pixels"),
    (CANCELS, "gradient 1 in 4"),
))  # fmt: skip
def test_cpu_gives_the_same_bits_on_any_number_of_threads(layer, kind):
    tensors, grad = drawn(layer, kind, torch.float32, 0)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append(gradients(by_cpu(layer), tensors, grad))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(one, other[name]) for name, one in found[0].items())


@pytest.mark.parametrize("value", (float("inf"), float("nan"), 1.5e38))
@pytest.mark.parametrize("name", ("planes", "1x1", "direct, 1d", "3x3 small, linear", "5x5", "depthwise"))
def test_cpu_keeps_what_is_not_finite_where_it_is_beside_a_mean(name, value):
    """The mean of a channel is taken out of all its elements: not where that would spread such a value."""
    layer = LAYERS[name]
    tensors, grad = drawn(layer, OPERATORS["conv_film"].kinds[CANCELS], torch.float32, 0)
    tensors[0][0, 1].view(-1)[0] = value
    tensors[1].mul_(1e-3), grad.mul_(1e-2)
    ours, plain = (gradients(call, tensors, grad) for call in (by_cpu(layer), layer.plain))
    for result, found in ours.items():
        torch.testing.assert_close(found.isfinite(), plain[result].isfinite())


@pytest.mark.usefixtures("one_thread")
def test_bench_errors_prints_ratios_and_says_whether_all_are_allowed(capsys, monkeypatch):
    words = ["--layers", "1x1 of few; planes of; none", "--kinds", "normal; max pool 2; short", "--draws", "1"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (1 + 2 * 2 + 1) + (1 + 3 * 3 + 1)
    assert lines[0].startswith("conv_film") and lines[1].startswith("planes of groups") and "max pool 2" in lines[2]
    assert lines[6].startswith("norm_film") and lines[7].startswith("none, planes") and "short input" in lines[9]
    monkeypatch.setattr(errors, "MOST", 0.1)
    assert main([*words, "--only", "norm_film"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 3 * 3 + 1 and "*" in lines[1]
    with pytest.raises(SystemExit):
        main(["--kinds", "no such kind"])


def test_what_is_too_far_off_by_chance_is_measured_again(monkeypatch):
    """And what is so every time stays."""
    layer, kind = LAYERS["none, planes"], OPERATORS["norm_film"].kinds["normal"]
    for found, expected, draws in (([1.9], 1.9, [2]), ([2.1, 1.2], 1.2, [2, 20]), ([2.1, 2.2], 2.2, [2, 20])):
        left, seen = iter(found), []

        def ratios(layer, kind, dtype, backend, seeds, left=left, seen=seen):
            seen.append(set(seeds))
            return {"output": next(left)}

        monkeypatch.setattr(errors, "_ratios", ratios)
        assert measure(layer, kind, draws=2) == {"output": expected}
        assert [len(seeds) for seeds in seen] == draws and len(set.union(*seen)) == sum(draws)
