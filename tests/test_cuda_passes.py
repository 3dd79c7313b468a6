"""The CUDA passes around a library's convolution, on the emulator: all activations, layouts, dtypes and sizes."""

from __future__ import annotations

import itertools

import pytest
import torch

from film_kernels.activations import ACTIVATIONS, FILM_POSITIONS
from film_kernels.backends.cuda import CudaConvFilm
from tests.helpers.cases import EMULATED, Case, problem_of, tensors_of
from tests.helpers.pairs import pairs

pytestmark = [
    pytest.mark.skipif(not EMULATED, reason="the sources are not here, only the tests"),
    pytest.mark.usefixtures("one_thread"),
]

SHAPES = (  # (N, K, *out) on both sides of a packet's, a warp's and a block's edges
    (2, 24, 9, 7),
    (3, 5, 13),
    (2, 16, 4, 5, 6),
    (1, 13, 53, 54),
    (2, 136, 6, 5),
    (1, 300, 3, 3),
    (2, 24, 23, 24),
    (17, 1, 1, 1),
)
CHOICES = {
    "shape": SHAPES,
    "activation": tuple(ACTIVATIONS),
    "position": FILM_POSITIONS,
    "dtype": (torch.float32, torch.bfloat16, torch.float16),
    "rows": (False, True),
    "given": ("bias gamma beta", "gamma beta", "bias beta", "bias gamma", ""),
    "shifted": (False, False, True),  # by one element: nothing begins at a multiple of 16 bytes
}
ROWS = tuple(pairs(CHOICES, lambda row: not row["rows"] or len(row["shape"]) > 3))


def placed(tensor, rows, shifted):
    """The same numbers, laid out in memory as asked for."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    tensor = tensor.contiguous(memory_format=formats[tensor.dim()] if rows else torch.contiguous_format)
    storage = tensor.new_empty(tensor.numel() + 1)
    return storage[int(shifted) :].as_strided(tensor.shape, tensor.stride(), int(shifted)).copy_(tensor)


def drawn(row, seed):
    """(problem, grad, [raw, bias, gamma, beta])"""
    n, k, *out = row["shape"]
    case = Case(
        "pass", (n, 1, *out), (k, 1, *(1,) * len(out)), activation=row["activation"], film_position=row["position"],
        gamma_offset=0.5,
    )  # fmt: skip
    tensors = tensors_of(case, row["dtype"], seed)
    for i, name in ((2, "bias"), (3, "gamma"), (4, "beta")):
        tensors[i] = tensors[i] if name in row["given"] else None
    problem = problem_of(case, tensors)._replace(channels_last=row["rows"])
    generator = torch.Generator().manual_seed(seed + 100)
    grad, raw = (
        placed(torch.randn(row["shape"], generator=generator).to(row["dtype"]), row["rows"], row["shifted"])
        for _ in range(2)
    )
    return problem, grad, [raw, *tensors[2:]]


def plain(problem, grad, tensors, dtype):
    """[y, dz, db, dgamma, dbeta] by PyTorch in `dtype`, None for what is not given."""
    raw, bias, gamma, beta = (None if t is None else t.to(dtype).requires_grad_() for t in tensors)

    def wide(factor):
        return factor.reshape(*factor.shape, *(1,) * problem.spatial_rank)

    def film(v):
        scale = 1 + problem.gamma_offset if gamma is None else wide(gamma + problem.gamma_offset)
        return scale * v if beta is None else scale * v + wide(beta)

    def act(v):
        return ACTIVATIONS[problem.activation].apply(v, problem.negative_slope)

    z = raw if bias is None else raw + wide(bias)
    y = film(act(z)) if problem.film_position == "post" else act(film(z))
    y.backward(grad.to(dtype))
    return [y.detach(), *(None if t is None else t.grad for t in (raw, bias, gamma, beta))]


def ours(problem, grad, tensors, in_place=False):
    raw, bias, gamma, beta = tensors
    kernels = CudaConvFilm()
    wanted = (True, bias is not None, gamma is not None, beta is not None)
    gradients = kernels.before(problem, grad, raw, bias, gamma, beta, wanted)
    assert gradients[0].stride() == grad.contiguous(memory_format=problem.memory_format).stride()
    out = raw.clone() if in_place else torch.full_like(raw, float("nan"))
    y = kernels.after(problem, out if in_place else raw, bias, gamma, beta, out)
    assert y.data_ptr() == out.data_ptr()
    return [y, *gradients]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(map(str, row.values())).replace(" ", "_"))
def test_output_and_gradients(emulator, row):
    emulator(ROWS.index(row) % len(EMULATED))
    errors = {}
    for seed in range(3 if row["shape"][1] > 16 else 16):  # the fewer channels, the fewer numbers to compare
        problem, grad, tensors = drawn(row, seed)
        exact = plain(problem, grad, tensors, torch.float64)
        theirs = plain(problem, grad, tensors, row["dtype"])
        for i, results in enumerate(zip(ours(problem, grad, tensors, in_place=seed == 1), theirs, exact, strict=True)):
            mine, other, right = results
            assert (mine is None) == (right is None)
            if right is not None:
                assert mine.shape == right.shape and mine.dtype == other.dtype
                errors.setdefault(i, []).append([(t.double() - right).norm().item() for t in (mine, other)])
    for i, found in errors.items():
        mine, other = torch.tensor(found).sum(0)
        assert mine <= 2 * other, (i, mine, other)


def test_only_what_is_wanted(emulator):
    emulator(0)
    row = next(row for row in ROWS if row["given"] == "bias gamma beta")
    problem, grad, tensors = drawn(row, 0)
    expected = CudaConvFilm().before(problem, grad, *tensors, (True,) * 4)
    for wanted in itertools.product((False, True), repeat=4):
        for asked, found, right in zip(
            wanted, CudaConvFilm().before(problem, grad, *tensors, wanted), expected, strict=True
        ):
            assert torch.equal(found, right) if asked else found is None


def test_the_same_bits_in_any_order_of_warps(emulator):
    for row in ({**ROWS[0], "shape": SHAPES[6], "rows": rows, "dtype": torch.float32} for rows in (False, True)):
        results = []
        for seed in range(3):
            emulator(seed)
            results.append(ours(*drawn(row, 0)))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True) if a is not None)


def test_nothing_to_sum(emulator):
    emulator(0)
    for shape in ((2, 3, 0, 4), (0, 3, 2, 2)):
        raw = torch.empty(shape)
        bias, gamma = torch.ones(3), torch.ones(shape[0], 3)
        problem = plane_problem(shape)
        found = CudaConvFilm().before(problem, raw, raw, bias, gamma, gamma, (True,) * 4)
        assert [t.shape for t in found] == [raw.shape, (3,), gamma.shape, gamma.shape]
        assert not any(t.any() for t in found)
        assert CudaConvFilm().after(problem, raw, bias, gamma, gamma, raw) is not None


def plane_problem(shape):
    """The problem of a pass over float32 planes; what it reads are the options."""
    case = Case("pass", (2, 1, 2, 2), (shape[1], 1, 1, 1))
    return problem_of(case, tensors_of(case, torch.float32))


def test_nan_and_infinities_pass_through(emulator):
    emulator(0)
    for activation in ("relu", "leaky_relu", "none"):
        row = {**ROWS[0], "shape": SHAPES[0], "dtype": torch.float32, "activation": activation, "given": ""}
        problem, grad, tensors = drawn(row, 0)
        tensors[0][0, 0, 0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
        found, right = ours(problem, grad, tensors)[0], plain(problem, grad, tensors, torch.float32)[0]
        torch.testing.assert_close(found, right, equal_nan=True)


@pytest.mark.parametrize("rows", [False, True])
def test_copies_of_the_factors(emulator, rows):
    """Of several pieces of a sample, and of views; one that could not be written is refused."""
    emulator(0)
    row = {"shape": (3, 24, 53, 54), "rows": rows, "dtype": torch.bfloat16, "given": "bias gamma beta"}
    problem, _, (raw, bias, gamma, beta) = drawn({**ROWS[0], **row}, 0)
    beta = beta.repeat_interleave(2, 1)[:, ::2]
    copies = torch.full_like(bias, float("nan")), torch.full(beta.shape, float("nan"), dtype=beta.dtype)
    CudaConvFilm().after(problem, raw, bias, gamma, beta, torch.empty_like(raw), copies)
    assert torch.equal(copies[0], bias) and torch.equal(copies[1], beta)
    for wrong, words in (
        ((copies[0][:-1], None), "bias_copy must have shape"),
        ((copies[0].float(), None), "bias_copy must have the dtype"),
        ((None, copies[1].T.contiguous().T), "beta_copy must be contiguous"),
    ):
        with pytest.raises(RuntimeError, match=words):
            CudaConvFilm().after(problem, raw, bias, gamma, beta, torch.empty_like(raw), wrong)
    with pytest.raises(RuntimeError, match="bias_copy is given, and nothing"):
        CudaConvFilm().after(problem, raw, None, gamma, beta, torch.empty_like(raw), copies)


BAD = (  # what is changed, and a word of the error
    ({"raw": torch.ones(2, 4)}, "raw must have shape"),
    ({"raw": torch.ones(2, 4, 3, 3, dtype=torch.float64)}, "dtype"),
    ({"raw": torch.ones(2, 4, 3, 3).mT}, "raw must be dense"),
    ({"grad": torch.ones(2, 4, 3, 3).mT}, "grad must be dense"),
    ({"grad": torch.ones(2, 4, 3, 3).bfloat16()}, "grad must have the dtype"),
    ({"grad": torch.ones(2, 4, 3, 2)}, "grad must have shape"),
    ({"bias": torch.ones(3)}, "bias must have shape"),
    ({"gamma": torch.ones(4)}, "gamma must have shape"),
    ({"channels_last": True}, "channels_last"),
    ({"activation": 10}, "activation must be"),
    ({"activation": -1}, "activation must be"),
    ({"position": 2}, "position must be"),
    ({"lower_slope": float("nan")}, "lower_slope must be finite"),
)


@pytest.mark.parametrize(("change", "words"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_the_raw_operators_check_what_they_are_given(emulator, change, words):
    emulator(0)
    right = {
        "grad": torch.ones(2, 4, 3, 3), "raw": torch.ones(2, 4, 3, 3), "bias": None, "gamma": None, "beta": None,
        "channels_last": False, "activation": 1, "position": 0, "lower_slope": 0.0, "gamma_offset": 0.0,
    }  # fmt: skip
    wanted = dict.fromkeys(("raw_wanted", "bias_wanted", "gamma_wanted", "beta_wanted"), True)
    torch.ops.film_kernels_cuda.pass_backward(**right, **wanted)
    with pytest.raises(RuntimeError, match=words):
        torch.ops.film_kernels_cuda.pass_backward(**{**right, **change}, **wanted)
    forward = {**right, **change}
    forward["out"] = forward.pop("grad")
    with pytest.raises(RuntimeError, match=words.replace("grad", "out")):
        torch.ops.film_kernels_cuda.pass_forward(**forward)


def test_a_freed_tensor_is_an_error(emulator):
    emulator(0)
    raw, grad = torch.ones(2, 4, 3, 3), torch.ones(2, 4, 3, 3)
    raw.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="raw"):
        CudaConvFilm().before(plane_problem((2, 4)), grad, raw, None, None, None, (True, False, False, False))
