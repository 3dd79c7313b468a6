"""silu, gelu and their like, of which backward needs z: by `cpu`, `vendor` and `reference`; what keeps one bit an
element refuses them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import film_kernels
from film_kernels.activations import ACTIVATIONS
from film_kernels.backends import BACKENDS, choose, cpu_pass, cuda_device
from film_kernels.problems.conv_film import KEEPS
from tests.helpers.cases import INTERPRETED, Case, assert_as_good_as_plain, problem_of, run, tensors_of
from tests.helpers.expected_refusals import assert_refused, words_of_refusal

pytestmark = pytest.mark.usefixtures("one_thread")
FUNCTIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "mish": F.mish,
    "elu": F.elu,
}
SMOOTH = tuple(FUNCTIONS)
POSITIONS = ("post", "pre")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
CELLS = [
    *(("cpu", dtype) for dtype in DTYPES),
    *(("vendor", dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16)),
    ("reference", torch.float64),
]
# Some for each way through the CPU kernels.
PATHS = (
    Case("planes", (2, 3, 12, 14), (10, 3, 3, 3), padding=1),
    Case("planes_with_a_stride", (2, 3, 19, 18), (16, 3, 5, 5), 2, 2),
    Case("planes_of_groups", (2, 12, 12, 11), (12, 4, 3, 3), padding=1, groups=3),
    Case("long_row", (1, 2, 2, 700), (3, 2, 1, 3), padding=(0, 1)),
    Case("pointwise", (2, 8, 7, 7), (70, 8, 1, 1)),
    Case("pointwise_of_many", (2, 64, 9, 9), (40, 64, 1, 1)),
    Case("pointwise_with_a_stride", (2, 8, 7, 7), (17, 8, 1, 1), 2),
    Case("direct_with_a_stride", (2, 32, 13, 12), (40, 32, 3, 3), 2, 1),
    Case("direct_in_groups", (2, 48, 9, 10), (48, 24, 3, 3), 2, 1, 1, 2),
    Case("dilated", (2, 16, 12, 12), (24, 16, 3, 3), padding=2, dilation=2, gamma_offset=1.0),
    Case("one_dimension", (2, 32, 60), (33, 32, 13)),
    Case("few_positions", (5, 4, 3, 2), (5, 4, 3, 3), 3, 2),
    Case("winograd", (3, 24, 15, 14), (40, 24, 3, 3), padding=1),
    Case("winograd_in_groups", (2, 64, 9, 10), (40, 32, 3, 3), groups=2, gamma_offset=1.0),
    Case("winograd_5_x_5", (2, 21, 13, 15), (18, 21, 5, 5), padding=2),
    Case("winograd_lines", (2, 64, 45), (70, 64, 5), padding=2),
    Case("scaling", (2, 9, 7, 9), (9, 1, 1, 1), groups=9),
)
ON_PATHS = [  # each path twice: smooth activations, positions and what is kept take turns
    replace(
        case, activation=SMOOTH[(i + 3 * second) % len(SMOOTH)], film_position=POSITIONS[(i + second) % 2],
        keep=KEEPS[(i // 2 + second) % len(KEEPS)],
    )
    for i, case in enumerate(PATHS)
    for second in range(2)
]  # fmt: skip


def test_these_are_all_the_smooth_ones():
    assert {name for name, row in ACTIVATIONS.items() if not row.one_bit} == set(SMOOTH)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("name", SMOOTH)
def test_the_formula(name, position):
    x, w, b, gamma, beta = tensors_of(Case("formula", (2, 3, 6, 5), (4, 3, 3, 3)), torch.float64)
    z, scale, shift = F.conv2d(x, w, b), 1 + gamma[:, :, None, None], beta[:, :, None, None]
    expected = scale * FUNCTIONS[name](z) + shift if position == "post" else FUNCTIONS[name](scale * z + shift)
    y = film_kernels.conv_film(x, w, b, gamma, beta, activation=name, film_position=position, gamma_offset=1)
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize(("backend", "dtype"), CELLS, indirect=["backend"], ids=str)
@pytest.mark.parametrize("name", SMOOTH)
def test_output_and_gradients(backend, dtype, name, position):
    if position == "post":
        case = Case("grouped", (2, 8, 9, 7), (12, 2, 3, 3), (2, 1), (1, 2), 1, 4, name, position, gamma_offset=1.0)
    else:
        case = Case("one_dimension", (3, 6, 30), (12, 6, 5), 1, 4, 2, 1, name, position)
    assert_as_good_as_plain(case, lambda seed: tensors_of(case, dtype, seed), backend)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ON_PATHS, ids=str)
def test_every_way_through_the_cpu_kernels(case, dtype, channels_last):
    draws = max(8, 48 // case.weight[0])  # gradients are of all of z's errors in tiles: three draws say too little
    assert_as_good_as_plain(
        case, lambda seed: tensors_of(case, dtype, seed, channels_last), "cpu", channels_last, draws=draws
    )


@pytest.mark.parametrize("absent", [(2,), (3,), (4,), (3, 4), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("backend", ["cpu", "vendor"], indirect=True)
def test_absent_bias_gamma_and_beta(backend, absent, position):
    case = Case("absent", (2, 5, 9, 8), (6, 5, 3, 3), activation="gelu", film_position=position, gamma_offset=1.0)

    def draw(seed):
        return [None if i in absent else t for i, t in enumerate(tensors_of(case, torch.float32, seed))]

    assert_as_good_as_plain(case, draw, backend)


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("wanted", range(1, 32))
def test_any_subset_of_gradients(wanted, position, keep):
    case = Case("subset", (2, 4, 6, 5), (10, 4, 3, 3), padding=1, activation="silu", film_position=position, keep=keep)
    tensors = tensors_of(case, torch.float64)
    grad = torch.randn(2, 10, 6, 5, dtype=torch.float64)
    everything = run(case, tensors, grad, "reference", torch.float64)[1:]
    leaves = [t.clone().requires_grad_(bool(wanted >> i & 1)) for i, t in enumerate(tensors)]
    film_kernels.conv_film(*leaves, *case.geometry, **case.options, backend="cpu").backward(grad)
    for leaf, expected in zip(leaves, everything, strict=True):
        if leaf.requires_grad:
            torch.testing.assert_close(leaf.grad, expected)
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("case", ON_PATHS[::3], ids=str)
def test_the_same_bits_with_any_number_of_threads(case):
    for dtype in (torch.float32, torch.bfloat16):
        tensors = tensors_of(case, dtype)
        grad = torch.randn(film_kernels.reference.conv_film(*tensors, *case.geometry).shape)
        found = []
        for threads in (1, 2, 2, 3):
            torch.set_num_threads(threads)  # the fixture one_thread sets it back
            found.append(run(case, tensors, grad, "cpu", dtype))
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [case for case in ON_PATHS if case.name != "scaling"], ids=str)
def test_z_is_kept_as_the_convolution_gives_it(case, dtype):
    """The same bits as without activation and FiLM, laid out as the output is."""
    for channels_last in (False, True):
        tensors = tensors_of(case, dtype, channels_last=channels_last)
        problem = problem_of(case, tensors)
        kernels, linear = BACKENDS["cpu"].of(problem), problem._replace(activation="none", has_gamma=False,
            has_beta=False, gamma_offset=0.0, film_position="post")  # fmt: skip
        y, z = kernels.forward(problem._replace(keep="fast"), tensors, True)
        assert z.dtype == dtype and z.shape == y.shape and z.stride() == y.stride()
        assert torch.equal(z, kernels.forward(linear, (*tensors[:3], None, None), False)[0])
        again, nothing = kernels.forward(problem._replace(keep="least"), tensors, True)
        assert torch.equal(y, again) and nothing.numel() == 0


@pytest.mark.parametrize("keep", ["fast", "least"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1.5e38])
@pytest.mark.parametrize("name", ["silu", "tanh"])
def test_what_is_not_finite_stays_where_it_is(name, value, keep):
    """Filtered by Winograd it would spread over a tile, of z as of y: then everything is computed again."""
    case = Case("", (2, 32, 9, 10), (32, 32, 3, 3), padding=1, activation=name, film_position="pre", keep=keep)
    tensors = tensors_of(case, torch.float32)
    tensors[1] /= 100
    tensors[0][1, 3, 4, 5] = value
    grad = torch.randn(2, 32, 9, 10, generator=torch.Generator().manual_seed(1)) / 10
    ours, plain = (run(case, tensors, grad, backend, torch.float32) for backend in ("cpu", "reference"))
    for found, expected in zip(ours, plain, strict=True):
        finite = expected.isfinite()
        torch.testing.assert_close(found.isfinite(), finite)
        if value != 1.5e38 or expected is plain[0]:
            torch.testing.assert_close(found[finite], expected[finite], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("backend", ["cpu", "vendor", "reference"], indirect=True)
@pytest.mark.parametrize("name", SMOOTH)
def test_gradcheck_and_gradgradcheck(backend, name, position, one_thread):
    case = Case("small", (2, 2, 4, 3), (3, 2, 2, 2), (2, 1), (1, 0), activation=name, film_position=position)
    tensors = [t.requires_grad_() for t in tensors_of(case, torch.float64)]

    def call(*args):
        return film_kernels.conv_film(*args, *case.geometry, **case.options, backend=backend)

    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


@pytest.mark.parametrize("backend", INTERPRETED[:1], indirect=True)
@pytest.mark.parametrize("name", SMOOTH)
def test_kernels_that_keep_one_bit_say_why_not(backend, name):
    case = Case("refused", (2, 3, 6, 5), (4, 3, 3, 3), activation=name, keep="bits")
    tensors = tensors_of(case, torch.float32)
    assert "one bit" in BACKENDS[backend].why_not(problem_of(case, tensors))
    assert_refused(backend, case, tensors, words_of_refusal(backend, case))


@pytest.mark.parametrize("name", SMOOTH)
def test_the_cuda_kernels_say_why_they_keep_no_bits(name, monkeypatch):
    monkeypatch.setattr(cuda_device, "_too_old", lambda device: None)
    case = Case("refused", (2, 3, 6, 5), (4, 3, 3, 3), activation=name)
    problem = problem_of(case, tensors_of(case, torch.float32))._replace(device=torch.device("cuda"))
    assert BACKENDS["cuda"].why_not(problem) is None
    assert BACKENDS["cuda"].why_not(problem._replace(activation="relu", keep="bits")) is None
    assert name in BACKENDS["cuda"].why_not(problem._replace(keep="bits"))


@pytest.mark.parametrize("name", SMOOTH)
def test_cpu_serves_without_a_pin(name):
    case = Case("chosen", (2, 3, 6, 5), (4, 3, 3, 3), activation=name)
    problem = problem_of(case, tensors_of(case, torch.float32))
    assert choose(problem, None).name == "cpu"
    narrow = replace(case, input=(2, 4, 6, 5), weight=(4, 2, 3, 3), groups=2)
    assert choose(problem_of(narrow, tensors_of(narrow, torch.float32)), None).name == "vendor"


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("name", SMOOTH)
def test_frozen_convolution_with_trained_film(name, position, keep):
    case = Case("frozen", (2, 3, 6, 5), (4, 3, 3, 3), activation=name, film_position=position, keep=keep)
    x, w, b, gamma, beta = tensors_of(case, torch.float64)
    found = []
    for backend in ("cpu", "vendor", "reference"):
        factors = gamma.clone().requires_grad_(), beta.clone().requires_grad_()
        film_kernels.conv_film(x, w, b, *factors, **case.options, backend=backend).square().sum().backward()
        found.append([factor.grad for factor in factors])
    for other in found[:2]:
        torch.testing.assert_close(other, found[2])


def test_the_gradient_of_z_is_made_only_where_it_is_read(monkeypatch):
    asked = []
    backward = cpu_pass.backward
    monkeypatch.setattr(cpu_pass, "backward", lambda *given: asked.append(given[-1]) or backward(*given))
    case = Case("wanted", (2, 3, 6, 5), (4, 3, 3, 3), activation="silu")
    for wanted in ((False, False, True, True, True), (True, False, False, True, False), (False,) * 4 + (True,)):
        leaves = [t.requires_grad_(w) for t, w in zip(tensors_of(case, torch.float32), wanted, strict=True)]
        film_kernels.conv_film(*leaves, activation="silu", backend="cpu").sum().backward()
    assert asked == [(False, True, True, True), (True, False, True, False), (False, False, False, True)]


def test_the_one_bit_formula_refuses_them():
    x, w, b, gamma, beta = tensors_of(Case("bits", (1, 2, 4, 4), (2, 2, 3, 3), activation="silu"), torch.float64)
    case = Case("bits", (1, 2, 4, 4), (2, 2, 3, 3), activation="silu")
    grad = torch.ones(1, 2, 2, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="smooth"):
        film_kernels.reference.backward(problem_of(case, [x, w, b, gamma, beta]), grad, grad > 0, x, w, b, gamma)
