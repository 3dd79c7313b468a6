"""Every backend against plain PyTorch: forward and five gradients, over norms, sizes, layouts, options and dtypes."""

from __future__ import annotations

import dataclasses
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from film_kernels.backends import BACKENDS
from tests.helpers.norm_cases import (
    FACTORS,
    FUNCTIONS,
    LAYOUTS,
    SERVING,
    Case,
    assert_as_good_as_plain,
    gradients,
    ours,
    plain,
    problem_of,
    tensors_of,
)
from tests.helpers.pairs import pairs

FLOAT64 = (torch.float64, None)
DTYPES = (
    FLOAT64, (torch.float32, None), (torch.bfloat16, None), (torch.float16, None),
    (torch.bfloat16, torch.float32), (torch.float16, torch.float32),
)  # fmt: skip
# The name of the norm, how many groups, and where the channels stand.
NORMS = (
    ("group", "some", 1), ("group", "one", 1), ("group", "channels", 1), ("batch", None, 1),
    *((norm, None, dim) for dim in (1, -1) for norm in ("channel", "rms", "l2")),
)  # fmt: skip
SHAPES = (
    (2, 8, 7, 7),  # 49 positions
    (4, 6),
    (3, 7, 1),  # one position, a prime number of channels
    (2, 6, 13),
    (4, 1, 5),  # one channel
    (2, 4, 17),
    (3, 6, 2),
    (1, 12, 9),
    (1, 64, 3, 3),
    (3, 5, 2, 3, 4),
    (2, 13, 16),
    (2, 40, 1, 1),
    (2, 24, 6, 11),
    (1, 4, 3, 9, 8),
    (1, 6, 5003),  # one long row
    (1, 32, 40, 48),  # as one group, of more than 64 KB
)
ABSENT = (
    (), ("weight", "bias"), ("bias",), ("weight",), ("gamma",), ("beta",), ("gamma", "beta"),
    ("weight", "bias", "gamma", "beta"), ("bias", "beta"),
)  # fmt: skip


def _groups(kind: str | None, channels: int) -> int | None:
    some = next((d for d in range(2, channels) if channels % d == 0), channels)
    return {None: None, "some": some, "one": 1, "channels": channels}[kind]


def _is_allowed(row) -> bool:
    smooth = row["activation"] not in ("relu", "leaky_relu")  # the others' gradient is 0 near the kink
    alone = row["norm"][0] == "batch" and math.prod(row["shape"]) == row["shape"][1]
    return (row["grad_layout"] != "expanded" or smooth) and not alone


def _case(row) -> Case:
    norm, groups, dim = row["norm"]
    n, c, *spatial = row["shape"]
    return Case(
        (n, c, *spatial) if dim == 1 else (n, *spatial, c), norm, _groups(groups, c), row["activation"],
        row["position"], row["offset"], channel_dim=dim, layout=row["layout"], grad_layout=row["grad_layout"],
        factors=row["factors"], absent=row["absent"], dtype=row["dtype"][0], parameter_dtype=row["dtype"][1],
    )  # fmt: skip


CASES = [
    _case(row)
    for row in pairs(
        {
            "shape": SHAPES, "norm": NORMS, "layout": tuple(LAYOUTS), "activation": tuple(FUNCTIONS),
            "position": ("pre", "post"), "offset": (0.0, 1.0), "factors": tuple(FACTORS), "absent": ABSENT,
            "dtype": DTYPES, "grad_layout": ("contiguous", "channels_innermost", "every_second_column", "expanded"),
        },
        _is_allowed,
    )
]  # fmt: skip


def test_backends_that_must_be_there_serve_norm_film():
    assert set(SERVING) == {"cpu", "vendor", "reference"}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_and_gradients(backend, case):
    assert_as_good_as_plain(case, backend)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("position", ["pre", "post"])
@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_any_subset_of_gradients(backend, norm, position):
    row = {
        "shape": (2, 6, 3, 4), "norm": norm, "layout": "channels_innermost", "activation": "mish", "position": position,
        "offset": 1.0, "factors": "rows", "absent": (), "dtype": FLOAT64, "grad_layout": "contiguous",
    }  # fmt: skip
    case = _case(row)
    tensors, grad = tensors_of(case), torch.randn(case.input, dtype=torch.float64)
    everything = gradients(lambda leaves: plain(case, leaves), tensors, grad)[1:]
    for wanted in range(1, 32):
        leaves = [t.detach().requires_grad_(bool(wanted >> i & 1)) for i, t in enumerate(tensors)]
        ours(case, leaves, backend).backward(grad)
        for leaf, expected in zip(leaves, everything, strict=True):
            assert (leaf.grad is None) == (not leaf.requires_grad)
            if leaf.requires_grad:
                torch.testing.assert_close(leaf.grad, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("activation", ["silu", "relu", "none"])
@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_empty_inputs(norm, size, activation):
    """No samples, or no positions: the result is empty, and the gradients of what is summed are 0."""
    shape = (0, 4, 5) if size == 0 else (2, 4, 0, 3)
    row = {
        "shape": shape, "norm": norm, "layout": "contiguous", "activation": activation, "position": "pre",
        "offset": 0.0, "factors": "rows", "absent": (), "dtype": FLOAT64, "grad_layout": "contiguous",
    }  # fmt: skip
    case = _case(row)
    for backend in (
        None,
        *(name for name in SERVING if BACKENDS[name].why_not(problem_of(case, tensors_of(case))) is None),
    ):
        leaves = [t.detach().requires_grad_() for t in tensors_of(case)]
        y = ours(case, leaves, backend)
        assert y.shape == case.input and y.requires_grad
        y.sum().backward()
        for leaf in leaves:
            assert leaf.grad.shape == leaf.shape and (leaf.grad == 0).all()


def test_overlapping_memory(backend):
    frames = torch.randn(60, dtype=torch.float64).as_strided((3, 4, 6, 5), (7, 3, 2, 1))
    for norm, groups in (("group", 2), ("batch", None), ("channel", None)):
        case = Case((3, 4, 6, 5), norm, groups)
        leaves = [frames, *(t.requires_grad_() for t in tensors_of(case)[1:])]
        found, expected = ours(case, leaves, backend), plain(case, leaves)
        torch.testing.assert_close(found, expected)
        for one, other in zip(*(torch.autograd.grad(y.sum(), leaves[1:]) for y in (found, expected)), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("position", ["pre", "post"])
@pytest.mark.parametrize("absent", [(), ("weight",), ("weight", "gamma"), ("weight", "bias", "gamma", "beta")], ids=str)
def test_one_element_a_group(backend, absent, position):
    """xhat is 0, whatever the element: a batch of one too, which nn.functional's group_norm refuses."""
    for shape in ((1, 5), (1, 5, 1, 1), (3, 5, 1)):
        case = Case(shape, "group", 5, "none", position, absent=absent)
        tensors = tensors_of(case)
        found = _of_ones(case, tensors, backend)
        other = _of_ones(case, [tensors[0] * 0 + 7, *tensors[1:]], backend)
        tolerance = 1e-12 if backend == "reference" else 0  # the library's own sums leave a rounding
        torch.testing.assert_close(found[0], other[0], rtol=tolerance, atol=tolerance)
        assert found[1].abs().max() <= tolerance * 1e3 and (found[2] is None or found[2].abs().max() <= tolerance * 1e3)


def _of_ones(case, tensors, backend):
    return gradients(lambda leaves: ours(case, leaves, backend), tensors, torch.ones(case.input, dtype=case.dtype))


@settings(max_examples=80, deadline=None)
@given(
    n=st.integers(1, 4), each=st.integers(1, 9), groups=st.integers(1, 5),
    spatial=st.lists(st.integers(1, 9), max_size=3), norm=st.sampled_from(NORMS), seed=st.integers(0, 99),
    position=st.sampled_from(["pre", "post"]), layout=st.sampled_from(list(LAYOUTS)),
    activation=st.sampled_from([name for name in FUNCTIONS if "relu" not in name]),
    grad_layout=st.sampled_from(["contiguous", "turned", "expanded", "some_channels"]),
)  # fmt: skip
def test_any_shape(n, each, groups, spatial, norm, seed, position, layout, activation, grad_layout):
    row = {
        "shape": (n, each * groups, *spatial), "norm": norm, "layout": layout, "activation": activation,
        "position": position, "offset": 0.5, "factors": "chunks", "absent": (), "dtype": FLOAT64,
        "grad_layout": grad_layout,
    }  # fmt: skip
    if not _is_allowed(row):
        row["norm"] = ("group", "one", 1)
    case = _case(row)
    if case.num_groups is not None and norm[1] == "some":
        case = dataclasses.replace(case, num_groups=groups)
    case = dataclasses.replace(case, eps=0.1)  # where the variance is tiny, so is what can be told of the gradient
    tensors = tensors_of(case, seed)
    grad = LAYOUTS[grad_layout](torch.randn(case.input, dtype=torch.float64))
    expected = gradients(lambda leaves: plain(case, leaves), tensors, grad)
    for found, wanted in zip(gradients(lambda leaves: ours(case, leaves, None), tensors, grad), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
