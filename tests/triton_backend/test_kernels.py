"""Forward and the five gradients in the interpreter: layouts, geometries, formulas, dtypes, tilings, special values."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from film_kernels import reference
from film_kernels.backends.triton import finish, forward, grad_input, grad_weight, launch
from film_kernels.backends.triton.backend import Triton
from film_kernels.backends.triton.tuning import Entry
from tests.helpers.cases import Case, incoming_gradient, problem_of, run, tensors_of
from tests.helpers.triton_rule import assert_as_good_as_plain, run_triton

# The interpreter takes some milliseconds a tile and step: these are as small as shows the matter.
PLAIN = Case("plain", (2, 20, 5, 7), (18, 20, 3, 3), padding=1)
FEW = Case("few_channels", (3, 3, 7, 8), (26, 3, 3, 3))
GEOMETRIES = (
    PLAIN,
    FEW,
    Case("pointwise", (3, 17, 4, 5), (25, 17, 1, 1)),
    Case("odd_5x5", (1, 5, 8, 7), (23, 5, 5, 5), padding=2),
    Case("strided", (2, 16, 8, 7), (33, 16, 3, 3), stride=2, padding=1),
    Case("strided_pointwise", (2, 16, 5, 6), (24, 16, 1, 1), stride=2),
    Case("stride_3_kernel_2", (1, 16, 8, 9), (20, 16, 2, 2), stride=(3, 1)),
    Case("dilated", (2, 16, 7, 8), (21, 16, 3, 3), padding=2, dilation=2),
    Case("dilated_strided", (1, 16, 9, 10), (22, 16, 3, 2), stride=(2, 3), padding=(2, 1), dilation=(2, 3)),
    Case("asymmetric_padding", (2, 16, 5, 6), (22, 16, 4, 2), padding="same"),
    Case("one_dimension", (3, 18, 21), (25, 18, 5), stride=2, padding=4, dilation=2),
    Case("one_dimension_few", (2, 2, 30), (25, 2, 5), padding=2),
    Case("one_position", (4, 3, 3, 3), (1, 3, 3, 3)),
)
FORMULAS = (("relu", "pre"), ("leaky_relu", "post"), ("leaky_relu", "pre"), ("none", "post"), ("none", "pre"))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def as_channels_last(grad: torch.Tensor) -> torch.Tensor:
    return grad.contiguous(memory_format=torch.channels_last) if grad.dim() == 4 else grad


def check(case: Case, dtype=torch.float32, channels_last=False, **more):
    change = {"change_grad": as_channels_last} if channels_last else {}
    assert_as_good_as_plain(case, lambda seed: tensors_of(case, dtype, seed, channels_last), **change, **more)


# A layout is only an order in which tiles are loaded: it alternates, and the two classes of kernels have both.
@pytest.mark.parametrize(
    ("case", "channels_last"),
    [(PLAIN, True), (FEW, False), *((case, i % 2 == 1) for i, case in enumerate(GEOMETRIES))],
    ids=str,
)
def test_geometries(case, channels_last):
    check(case, channels_last=channels_last)


@pytest.mark.parametrize(("i", "formula"), enumerate(FORMULAS), ids=str)
def test_formulas(i, formula):
    activation, position = formula
    check(replace((PLAIN, FEW)[i % 2], activation=activation, film_position=position, gamma_offset=1.0))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("case", [PLAIN, FEW], ids=str)
def test_16_bits(case, dtype):
    case = replace(case, activation="leaky_relu", film_position="pre") if dtype == torch.float16 else case
    check(case, dtype, channels_last=case.input[1] == 3)


@pytest.mark.parametrize("num_warps", [4, 8])
@pytest.mark.parametrize(
    "entry",
    [
        Entry("one_sample_rows", 16, 16, 32, 4, 2),
        Entry("rows_of_many_samples", 64, 32, 16, 4, 2),
        Entry("flat", 32, 16, 16, 4, 2, True),
        Entry("flat_in_one", 64, 16, 256, 4, 2, True),
    ],
    ids=lambda entry: entry.name,
)
def test_tilings(entry, num_warps):
    """Every tile size gives the same sums, however rows, channels and products are cut."""
    case = Case("tilings", (3, 20, 4, 9), (18, 20, 3, 2), padding=(1, 0))
    entry = entry._replace(num_warps=num_warps)
    tilings = {"forward": entry, "grad_weight": entry, "grad_input": entry._replace(flat=False, products=16)}
    check(case, channels_last=num_warps == 8, entry=tilings, draws=1)


@pytest.mark.parametrize(
    ("absent", "position"), [((2,), "pre"), ((3,), "post"), ((3,), "pre"), ((4,), "pre"), ((2, 3, 4), "post")], ids=str
)
def test_absent_bias_gamma_and_beta(absent, position):
    case = replace(FEW, film_position=position, gamma_offset=float(absent == (3,)))

    def draw(seed):
        return [None if i in absent else t for i, t in enumerate(tensors_of(case, torch.float32, seed))]

    assert_as_good_as_plain(case, draw)


@pytest.mark.parametrize("case", [PLAIN, FEW], ids=str)
def test_only_what_is_wanted(case):
    tensors = tensors_of(case, torch.float32)
    grad = incoming_gradient(case, tensors)
    everything = run_triton(case, tensors, grad)[1:]
    for wanted in [*(tuple(i == j for i in range(5)) for j in range(5)), (True, False, True, False, True)]:
        found = run_triton(case, tensors, grad, wanted=wanted)[1:]
        for asked, gradient, expected in zip(wanted, found, everything, strict=True):
            assert (gradient is not None) == asked
            if asked:
                torch.testing.assert_close(gradient, expected)


def test_strides_of_every_kind():
    case = Case("strides", (2, 18, 5, 6), (9, 18, 3, 3), padding=1)
    tensors = tensors_of(case, torch.float32)
    grad = incoming_gradient(case, tensors)
    expected = run_triton(case, tensors, grad)
    padded = torch.zeros(2, 20, 10, 9)
    padded[:, 1:19, ::2, 2:8] = tensors[0]
    sliced = padded[:, 1:19, ::2, 2:8]
    turned = tensors[1].permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    wide = torch.zeros(2, 18)
    wide[:, ::2] = tensors[3]
    views = [sliced, turned, tensors[2].repeat_interleave(2)[::2], wide[:, ::2], tensors[4].t().contiguous().t()]
    wider = torch.full((9, 5, 9, 2), float("nan"))  # its rows do not follow on one another
    wider[:, :, 1:7] = grad.permute(1, 2, 3, 0)
    batch_last = wider[:, :, 1:7].permute(3, 0, 1, 2)
    for found, value in zip(run_triton(case, views, batch_last), expected, strict=True):
        torch.testing.assert_close(found, value)


def test_expanded_gradient_and_factors():
    case = replace(FEW, film_position="pre")
    tensors = tensors_of(case, torch.float32)
    tensors[3], tensors[4] = (t[:1].expand(3, 26) for t in tensors[3:])
    out = reference.conv_film(*tensors, *case.geometry, **case.options)
    grad = torch.ones(()).expand(out.shape)
    expected = run(case, tensors, grad, "reference", torch.float32)
    for found, value in zip(run_triton(case, tensors, grad), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "none"])
@pytest.mark.parametrize("position", ["post", "pre"])
def test_nan_and_infinity_come_through_as_in_plain_pytorch(activation, position):
    case = replace(FEW, activation=activation, film_position=position)
    tensors = tensors_of(case, torch.float32)
    tensors[0][0, 1, 3, 3] = float("nan")
    tensors[0][1, 0, 2, 2] = float("inf")
    tensors[3][2, 4] = float("nan")
    y = run_triton(case, tensors, torch.ones(3, 26, 5, 6))[0]
    expected = reference.conv_film(*tensors, *case.geometry, **case.options)
    assert expected.isnan().any() and expected.isinf().any()
    torch.testing.assert_close(y, expected, equal_nan=True, rtol=1e-5, atol=1e-5)


def test_relu_gives_a_nan_gradient_of_gamma_where_the_incoming_gradient_is_not_finite():
    tensors = tensors_of(FEW, torch.float32)
    grad = incoming_gradient(FEW, tensors)
    off = reference.convolution(problem_of(FEW, tensors), *tensors[:3]) < -0.1
    n, k, h, w = off.nonzero()[7].tolist()
    grad[n, k, h, w] = float("inf")
    plain = run(FEW, tensors, grad, "reference", torch.float32)
    found = run_triton(FEW, tensors, grad)
    for ours, theirs in zip(found, plain, strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert torch.equal(ours.isinf(), theirs.isinf())
    assert found[4][n, k].isnan()


def test_infinite_gamma_stays_with_its_own_positions():
    """Positions past the output's edge add nothing to dx, though gamma times nothing is NaN where gamma is infinite."""
    tensors = tensors_of(PLAIN, torch.float32)
    tensors[3][1, 2] = float("inf")
    grad = torch.zeros(2, 18, 5, 7)
    grad[0] = 1
    grad_x = run_triton(PLAIN, tensors, grad, wanted=(True, False, False, False, False))[1]
    assert grad_x[0].isfinite().all()


@pytest.mark.parametrize("case", [PLAIN, FEW], ids=str)
def test_the_same_bits_from_run_to_run(case):
    tensors = tensors_of(case, torch.bfloat16)
    grad = incoming_gradient(case, tensors)
    for first, second in zip(run_triton(case, tensors, grad), run_triton(case, tensors, grad), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("size", [(0, 3, 6, 6), (2, 3, 2, 6)], ids=["empty_batch", "no_output_rows"])
def test_empty_results(size):
    case = Case("empty", size, (5, 3, 3, 3))
    tensors = tensors_of(case, torch.float32)
    y, *gradients = run_triton(case, tensors, torch.zeros(size[0], 5, size[2] - 2, 4))
    assert y.shape == (size[0], 5, size[2] - 2, 4)
    for gradient, tensor in zip(gradients, tensors, strict=True):
        assert gradient.shape == tensor.shape and (gradient == 0).all()


def test_no_overflow_and_offsets_in_64_bits_give_the_same(monkeypatch):
    for case in (Case("wide_offsets", (2, 17, 4, 5), (9, 17, 3, 3), stride=2, padding=1), FEW):
        tensors = tensors_of(case, torch.float32)
        grad = incoming_gradient(case, tensors)
        expected = run_triton(case, tensors, grad)
        with monkeypatch.context() as patch:
            patch.setattr(launch, "needs_64_bits", lambda *layouts: True)
            forget_plans()
            found = run_triton(case, tensors, grad)
            forget_plans()
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)


def forget_plans():
    for module in (forward, grad_input, grad_weight, finish):
        module._plan.cache_clear()


def test_which_tensors_need_64_bits():
    def needs(*tensors: torch.Tensor | None) -> bool:
        return launch.needs_64_bits(*launch.layouts(*tensors))

    def meta(*shape: int) -> torch.Tensor:
        return torch.empty(shape, device="meta")

    assert not needs(meta(2**15, 2**15), None)
    assert needs(meta(8), meta(2**16, 2**15))
    assert needs(torch.empty(3, device="meta").as_strided((2, 2), (2**31, 1)))
    assert not needs(meta(1).expand(2**40, 1)) and not needs(meta(0, 2**40))


@pytest.mark.parametrize("divisor", [1, 2, 3, 7, 222, 4096, 65537, 2**31 - 1])
def test_a_multiplication_divides(divisor):
    factor, shift = launch.reciprocal(divisor)
    assert factor < 2**32
    for q in (0, 1, divisor - 1, divisor, 5 * divisor - 1, 5 * divisor, 2**30 + 1, 2**31 - 2, 2**31 - 1):
        if q < 2**31:
            assert (2 * q * factor >> 32) >> shift == q // divisor


def test_reasons():
    backend = Triton()
    problem = problem_of(FEW, tensors_of(FEW, torch.float32))
    assert backend.unavailable() is None and backend.why_not(problem) is None
    for change, word in (
        ({"groups": 3}, "one group"),
        ({"dtype": torch.float64, "device": torch.device("cuda")}, "float64"),
        ({"stride": (1, 1, 1)}, "3d"),
        ({"device": torch.device("meta")}, "meta"),
    ):
        assert word in backend.why_not(problem._replace(**change))
