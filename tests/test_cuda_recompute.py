"""Forward without bits, and backward with nothing kept, by the CUDA kernels on the emulator, with all activations; dx
and dW are PyTorch's own, of the kernel's dz."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from film_kernels import reference
from film_kernels.activations import ACTIVATIONS, FILM_POSITIONS
from film_kernels.backends.cuda import CudaConvFilm, _uses_tensor_cores
from tests.helpers.cases import (
    EMULATED,
    Case,
    as_tf32,
    as_they_are,
    float32_products,
    hold_to_the_rule,
    incoming_gradient,
    problem_of,
    tensors_of,
)
from tests.helpers.pairs import pairs

pytestmark = pytest.mark.skipif(not EMULATED, reason="the sources are not here, only the tests")

KERNELS = CudaConvFilm()
FEW = Case("few_channels", (2, 3, 7, 8), (18, 3, 3, 3), stride=2)
CASES = (  # of all three shapes of tiles (for the emulator's 4 multiprocessors), and without tensor cores
    Case("small_tiles", (3, 24, 9, 7), (72, 24, 3, 3), padding=1),
    Case("middle_tiles", (2, 16, 32, 32), (40, 16, 1, 1)),
    Case("large_tiles", (2, 8, 33, 32), (136, 8, 2, 1)),
    Case("one_position", (9, 24, 4, 4), (16, 24, 4, 4)),
    FEW,
)
CHOICES = {
    "case": CASES,
    "activation": tuple(ACTIVATIONS),
    "film_position": FILM_POSITIONS,
    "dtype": (torch.bfloat16, torch.float16, torch.float32),
    "gamma_offset": (0.0, 1.0),
}
ROWS = tuple(pairs(CHOICES, lambda row: True))


@pytest.fixture
def seed(emulator):
    """Sets that of the emulator, where float32 products are tf32's."""
    with float32_products("tf32"):
        yield emulator


def sums_of(case: Case, tensors: list[Tensor | None], grad: Tensor, wanted=(True,) * 4):
    """(dz, db, dgamma, dbeta)."""
    return KERNELS.recompute(problem_of(case, tensors), grad, tensors, wanted)


def everything(case: Case, tensors: list[Tensor | None], grad: Tensor) -> list[Tensor | None]:
    """[y, and the five gradients]."""
    problem = problem_of(case, tensors)
    y, bits = KERNELS.fused(problem, tensors, False)
    assert bits is None
    dz, *sums = sums_of(case, tensors, grad)
    assert dz.stride() == y.stride() and dz.dtype == y.dtype
    leaves = [t.detach().requires_grad_() for t in tensors[:2]]
    reference.convolution(problem, *leaves, None).backward(dz)
    return [y, *(leaf.grad for leaf in leaves), *sums]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(map(str, row.values())))
def test_as_good_as_plain_pytorch(seed, row):
    seed(ROWS.index(row) % len(EMULATED))
    options = {name: row[name] for name in ("activation", "film_position", "gamma_offset")}
    case = replace(row["case"], keep="least", **options)

    def draw(number):
        return tensors_of(case, row["dtype"], number, channels_last=True)

    matrix = row["case"] is not FEW
    assert _uses_tensor_cores(problem_of(case, draw(0))) == matrix
    hold_to_the_rule(
        case,
        draw,
        lambda tensors, grad: everything(case, tensors, grad),
        1,
        lambda grad: grad.contiguous(memory_format=torch.channels_last),
        as_tf32 if row["dtype"] == torch.float32 and matrix else as_they_are,
    )


@pytest.mark.parametrize("position", FILM_POSITIONS)
def test_only_what_is_wanted_and_absent_tensors(seed, position):
    seed(0)
    case = replace(CASES[0], film_position=position, activation="silu", keep="least")
    tensors = tensors_of(case, torch.bfloat16, channels_last=True)
    for absent in ((), (2, 4), (2, 3, 4)):
        given = [None if i in absent else t for i, t in enumerate(tensors)]
        grad = incoming_gradient(case, given)
        complete = sums_of(case, given, grad)
        for wanted in itertools.product((False, True), repeat=4):
            for asked, found, right in zip(wanted, sums_of(case, given, grad, wanted), complete, strict=True):
                assert torch.equal(found, right) if asked else found is None


def test_the_same_bits_in_any_order_of_warps(seed):
    case = replace(CASES[0], activation="gelu", keep="least")
    tensors = tensors_of(case, torch.float16, channels_last=True)
    results = []
    for number in range(3):
        seed(number)
        results.append(sums_of(case, tensors, incoming_gradient(case, tensors)))
    for other in results[1:]:
        assert all(torch.equal(one, same) for one, same in zip(results[0], other, strict=True))


def test_a_row_beyond_its_sample_is_nobodys(seed):
    """An infinite gamma of one sample does not reach the sums of another."""
    seed(0)
    case = replace(CASES[0], keep="least")
    tensors = tensors_of(case, torch.float32, channels_last=True)
    tensors[3][1, 2] = float("inf")
    _, _, dgamma, dbeta = sums_of(case, tensors, incoming_gradient(case, tensors))
    assert dgamma.isfinite().all() and dbeta.isfinite().all()


def test_nothing_to_sum(seed):
    seed(0)
    tensors = [torch.empty(0, 16, 4, 4), torch.ones(8, 16, 1, 1), torch.ones(8), torch.ones(0, 8), torch.ones(0, 8)]
    case = Case("empty", (0, 16, 4, 4), (8, 16, 1, 1), keep="least")
    tensors[:2] = [t.to(memory_format=torch.channels_last) for t in tensors[:2]]
    found = sums_of(case, tensors, torch.empty(0, 8, 4, 4))
    assert [tuple(t.shape) for t in found] == [(0, 8, 4, 4), (8,), (0, 8), (0, 8)] and not found[1].any()


def last(*shape, dtype=torch.float32):
    return torch.ones(*shape, dtype=dtype).to(memory_format=torch.channels_last)


def freed(*shape):
    tensor = last(*shape)
    tensor.untyped_storage().resize_(0)
    return tensor


GEOMETRY = [1, 1, 0, 5, 1, 1, 0, 4, 1, 0, 0]
BAD = (  # what is changed, and words of the error
    ({"grad": torch.ones(2, 8, 5, 4)}, "grad must be channels_last"),
    ({"grad": last(2, 8, 5, 3)}, "grad must have shape"),
    ({"grad": last(2, 8, 5, 4, dtype=torch.float16)}, "grad must have the dtype"),
    ({"grad": freed(2, 8, 5, 4)}, "storage of grad"),
    ({"input": torch.ones(2, 16, 5, 4)}, "input must be channels_last"),
    ({"input": last(2, 12, 5, 4)}, "input must have as many channels"),
    ({"weight": torch.ones(8, 16, 1, 1, dtype=torch.float64)}, "weight must have the dtype"),
    ({"weight": freed(8, 16, 1, 1)}, "storage of weight"),
    ({"bias": torch.ones(7)}, "bias must have shape"),
    ({"gamma": torch.ones(8)}, "gamma must have shape"),
    ({"beta": torch.ones(1, 8)}, "beta must have shape"),
    ({"geometry": [*GEOMETRY[:-2], 10, 0]}, "activation must be from 0 to 9"),
    ({"geometry": [*GEOMETRY[:-2], -1, 0]}, "activation must be from 0 to 9"),
    ({"geometry": [*GEOMETRY[:8], 2, 0, 0]}, "channels|groups"),
    ({"geometry": GEOMETRY[:-1]}, "geometry must hold"),
    ({"numbers": [float("nan"), 0.0]}, "lower_slope must be finite"),
)


@pytest.mark.parametrize(("change", "words"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_the_raw_operator_checks_what_it_is_given(seed, change, words):
    seed(0)
    right = {
        "grad": last(2, 8, 5, 4), "input": last(2, 16, 5, 4), "weight": last(8, 16, 1, 1), "bias": None, "gamma": None,
        "beta": None, "geometry": GEOMETRY, "numbers": [0.0, 0.0],
    }  # fmt: skip
    wanted = dict.fromkeys(("raw_wanted", "bias_wanted", "gamma_wanted", "beta_wanted"), True)
    torch.ops.film_kernels_cuda.recompute(**right, **wanted)
    with pytest.raises(RuntimeError, match=words):
        torch.ops.film_kernels_cuda.recompute(**{**right, **change}, **wanted)
