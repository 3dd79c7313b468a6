"""Every backend against the reference: forward and five gradients, over dtypes, layouts and sizes."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given, settings

import film_kernels
from film_kernels.backends import BACKENDS
from tests.helpers.cases import (
    CASES,
    EMULATED,
    EXPECTED,
    GEOMETRIES,
    INTERPRETED,
    Case,
    assert_as_good_as_plain,
    assert_close,
    finest,
    incoming_gradient,
    run,
    tensors_of,
)
from tests.helpers.expected_refusals import REFUSALS, assert_refused, assert_served, words_of_refusal

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
CELLS = [
    # the reference is what others are held to; in float64 it is held to extended precision itself
    *((name, dtype) for name in EXPECTED for dtype in DTYPES if name != "reference" or dtype == torch.float64),
    # the interpreter takes seconds a case: tests/triton_backend has smaller ones of its own
    *(pytest.param(name, dtype, marks=pytest.mark.slow) for name in INTERPRETED for dtype in DTYPES),
    *((name, dtype) for name in EMULATED for dtype in DTYPES if dtype != torch.float64),
]


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize(("backend", "dtype"), CELLS, indirect=["backend"], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_and_gradients(backend, case, dtype, channels_last):
    tensors = tensors_of(case, dtype, 0, channels_last)
    if (words := words_of_refusal(backend, case, channels_last)) is not None:
        assert_refused(backend, case, tensors, words)
        return
    assert_served(backend, case, tensors)
    assert_as_good_as_plain(case, lambda seed: tensors_of(case, dtype, seed, channels_last), backend, channels_last)


def test_every_expected_refusal_is_of_a_case_and_a_backend():
    assert {refusal.case for refusal in REFUSALS} <= {case.name for case in GEOMETRIES}
    assert {refusal.backend for refusal in REFUSALS} <= set(BACKENDS)


@pytest.mark.parametrize("absent", [(2,), (3,), (4,), (3, 4), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("position", ["post", "pre"])
def test_absent_bias_gamma_and_beta(backend, absent, position):
    case = Case("absent", (2, 5, 9, 8), (6, 5, 3, 3), film_position=position)

    def draw(seed):
        return [None if i in absent else t for i, t in enumerate(tensors_of(case, torch.float32, seed))]

    assert_as_good_as_plain(case, draw, backend)


@pytest.mark.parametrize("wanted", range(1, 32))
def test_any_subset_of_gradients(backend, wanted):
    case = Case("subset", (2, 4, 6, 5), (10, 4, 3, 3), padding=1)
    dtype = finest(backend)
    tensors = tensors_of(case, dtype)
    grad = torch.randn(2, 10, 6, 5, dtype=dtype)
    everything = run(case, tensors, grad, "reference", dtype)[1:]
    leaves = [t.clone().requires_grad_(bool(wanted >> i & 1)) for i, t in enumerate(tensors)]
    film_kernels.conv_film(*leaves, *case.geometry, backend=backend).backward(grad)
    for leaf, expected in zip(leaves, everything, strict=True):
        if leaf.requires_grad:
            assert_close(leaf.grad, expected)
        else:
            assert leaf.grad is None


def _views(input: torch.Tensor):
    """The same values, as views of every kind."""
    n, c, h, w = input.shape
    wide = torch.zeros(n, c + 2, 2 * h, w + 3, dtype=input.dtype)
    wide[:, 1 : c + 1, ::2, 2 : w + 2] = input
    yield "sliced", wide[:, 1 : c + 1, ::2, 2 : w + 2]
    yield "transposed", input.transpose(2, 3).contiguous().transpose(2, 3)
    yield "batch_last", input.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    sliced_last = torch.zeros(n, h, w, 2 * c, dtype=input.dtype)
    sliced_last[..., c:] = input.permute(0, 2, 3, 1)
    yield "channels_last_sliced", sliced_last[..., c:].permute(0, 3, 1, 2)


@pytest.mark.parametrize("which", range(4))
def test_views(backend, which):
    case = Case("view", (2, 4, 9, 8), (6, 4, 3, 3), padding=1)
    dtype = finest(backend)
    tensors = tensors_of(case, dtype)
    _, view = list(_views(tensors[0]))[which]
    _, weight = list(_views(tensors[1]))[which]
    assert torch.equal(view, tensors[0]) and not view.is_contiguous()
    gamma = torch.zeros(2, 12, dtype=dtype)
    gamma[:, ::2] = tensors[3]
    grad = torch.randn(2, 6, 9, 8, dtype=dtype)
    expected = run(case, tensors, grad, "reference", dtype)
    found = run(case, [view, weight, tensors[2], gamma[:, ::2], tensors[4]], grad, backend, dtype)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)


def test_overlapping_views_and_expanded_gradients(backend):
    dtype = finest(backend)
    row = torch.randn(1, 4, 1, 8, dtype=dtype)
    input = row.expand(3, 4, 6, 8)  # stride 0
    frames = torch.randn(40, dtype=dtype).as_strided((3, 4, 6, 8), (1, 2, 3, 1))  # overlapping
    weight = torch.randn(5, 4, 3, 3, dtype=dtype)
    for x in (input, frames):
        leaves = [[t.clone().requires_grad_() if t is not x else t for t in (x, weight)] for _ in range(2)]
        ours = film_kernels.conv_film(*leaves[0], backend=backend)
        plain = film_kernels.reference.conv_film(*leaves[1])
        assert_close(ours, plain)
        ours.sum().backward(), plain.sum().backward()  # the incoming gradient has stride 0
        assert_close(leaves[0][1].grad, leaves[1][1].grad)


@pytest.mark.parametrize(
    ("backend", "size"),
    [(name, (0, 3, 6, 6)) for name in (*EXPECTED, *INTERPRETED, *EMULATED[:1])]
    + [(name, (2, 3, 2, 6)) for name in ("cpu", "reference", *INTERPRETED[:1], *EMULATED[:1])],
    indirect=["backend"],
)
def test_empty_results(backend, size):
    tensors = [
        torch.randn(*shape, requires_grad=True) for shape in (size, (5, 3, 3, 3), (5,), (size[0], 5), (size[0], 5))
    ]
    y = film_kernels.conv_film(*tensors, backend=backend)
    assert y.shape == (size[0], 5, size[2] - 2, 4)
    y.sum().backward()
    for t in tensors:
        assert t.grad.shape == t.shape and (t.grad == 0).all()


@pytest.mark.parametrize("size", [(2, 8, 0, 5), (2, 8, 5, 0)])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_results_of_padding_alone(size, stride):
    """Which plain PyTorch refuses."""
    input, weight, bias = torch.randn(size, requires_grad=True), torch.randn(8, 1, 3, 3), torch.randn(8)
    y = film_kernels.conv_film(input, weight, bias, stride=stride, padding=2, groups=8, backend="cpu")
    assert torch.equal(y, bias.relu()[:, None, None].expand_as(y))
    y.sum().backward()
    assert input.grad.shape == size


def test_zero_input_channels_are_as_plain_pytorch_has_them():
    input, weight = torch.zeros(2, 0, 5, 5), torch.zeros(4, 0, 3, 3)
    assert film_kernels.conv_film(input, weight).shape == torch.nn.functional.conv2d(input, weight).shape


@pytest.mark.parametrize("case", [GEOMETRIES[0], GEOMETRIES[1], GEOMETRIES[7]], ids=str)
def test_three_dimensions(case):
    deep = Case(
        "3d", (*case.input[:2], 5, *case.input[2:]), (*case.weight[:2], 3, *case.weight[2:]), case.stride, case.padding
    )
    assert_as_good_as_plain(deep, lambda seed: tensors_of(deep, torch.float32, seed), "vendor")


sizes = st.integers(1, 9)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 3), cg=st.integers(1, 5), kg=st.integers(1, 19), groups=st.integers(1, 3), h=sizes, w=sizes,
    kh=st.integers(1, 4), kw=st.integers(1, 4), stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)), dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    position=st.sampled_from(["post", "pre"]), channels_last=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(n, cg, kg, groups, h, w, kh, kw, stride, padding, dilation, position, channels_last, seed):
    case = Case(
        "any",
        (n, cg * groups, h, w),
        (kg * groups, cg, kh, kw),
        stride,
        padding,
        dilation,
        groups,
        film_position=position,
    )
    # Not a shape without an output, which would pass without a look at anything.
    assume(all(size + 2 * p > d * (k - 1) for size, p, d, k in zip((h, w), padding, dilation, (kh, kw), strict=True)))
    tensors = tensors_of(case, torch.float64, seed, channels_last)
    grad = torch.randn(run_shape(case, tensors), dtype=torch.float64)
    expected = run(case, tensors, grad, "reference", torch.float64)
    for found, wanted in zip(run(case, tensors, grad, "cpu", torch.float64), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 3), channels=st.integers(4, 40), h=sizes, w=st.integers(1, 30), kh=st.integers(1, 7),
    kw=st.integers(1, 7), stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 8), st.integers(0, 8)), activation=st.sampled_from(["relu", "silu", "none"]),
    position=st.sampled_from(["post", "pre"]), mean=st.sampled_from([0, 5]), layout=st.integers(0, 2),
    dtype=st.sampled_from([torch.float32, torch.float64]), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_depthwise_shape(
    n, channels, h, w, kh, kw, stride, padding, activation, position, mean, layout, dtype, seed
):
    case = Case(
        "any depthwise", (n, channels, h, w), (channels, 1, kh, kw), stride, padding, 1, channels,
        activation=activation, film_position=position,
    )  # fmt: skip
    assume(all(size + 2 * p >= k for size, p, k in zip((h, w), padding, (kh, kw), strict=True)))
    tensors = [t.to(dtype) for t in tensors_of(case, torch.float32, seed, channels_last=layout == 1)]
    tensors[0] += mean
    if layout == 2:  # neither columns nor channels side by side
        tensors[0] = tensors[0].transpose(1, 2).transpose(0, 3).contiguous().transpose(0, 3).transpose(1, 2)
    grad = incoming_gradient(case, tensors)
    expected = run(case, tensors, grad, "reference", torch.float64)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-3
    for found, wanted in zip(run(case, tensors, grad, "cpu", dtype), expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)


def run_shape(case, tensors):
    return film_kernels.reference.conv_film(*tensors, *case.geometry).shape
