"""Forward without bits, and backward with nothing kept, in the interpreter; dx and dW are PyTorch's own, of its dz."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from film_kernels import reference
from film_kernels.activations import ACTIVATIONS
from film_kernels.backends.triton import autotune, finish, launch, recompute
from film_kernels.backends.triton.backend import TritonConvFilm
from film_kernels.backends.triton.tuning import Entry
from tests.helpers.cases import Case, hold_to_the_rule, incoming_gradient, problem_of, run, tensors_of
from tests.helpers.pairs import pairs

KERNELS = TritonConvFilm()
PLAIN = Case("plain", (2, 17, 4, 5), (18, 17, 3, 3), padding=1)
FEW = Case("few_channels", (3, 3, 7, 8), (26, 3, 3, 3), stride=2)
CASES = (PLAIN, FEW, Case("one_dimension", (3, 16, 15), (25, 16, 5), stride=2, padding=4, dilation=2))
CHOICES = {
    "activation": tuple(ACTIVATIONS),
    "case": CASES,
    "film_position": ("post", "pre"),
    "channels_last": (False, True),
    "dtype": (torch.float32, torch.bfloat16, torch.float16),
    "gamma_offset": (0.0, 1.0),
}


def sums_of(case: Case, tensors: list[Tensor | None], grad: Tensor, wanted=(True,) * 4):
    """(dz, db, dgamma, dbeta)."""
    return KERNELS.recompute(problem_of(case, tensors), grad, tensors, wanted)


def everything(case: Case, tensors: list[Tensor | None], grad: Tensor) -> list[Tensor | None]:
    """[y, and the five gradients]."""
    problem = problem_of(case, tensors)
    y, bits = KERNELS.fused(problem, tensors, False, None)
    assert bits is None
    dz, *sums = sums_of(case, tensors, grad, (True, *(t is not None for t in tensors[2:])))
    assert dz.is_contiguous(memory_format=problem.memory_format) and dz.shape == y.shape
    leaves = [t.detach().requires_grad_() for t in tensors[:2]]
    reference.convolution(problem, *leaves, None).backward(dz)
    return [y, *(leaf.grad for leaf in leaves), *sums]


def hold(case: Case, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> None:
    def change_grad(grad):
        return grad.contiguous(memory_format=torch.channels_last) if channels_last and grad.dim() == 4 else grad

    def draw(seed):
        return tensors_of(case, dtype, seed, channels_last)

    hold_to_the_rule(case, draw, lambda tensors, grad: everything(case, tensors, grad), 1, change_grad)


@pytest.mark.parametrize(
    "row", list(pairs(CHOICES, lambda row: True)), ids=lambda row: "-".join(map(str, row.values()))
)
def test_as_good_as_plain_pytorch(row):
    options = {name: row[name] for name in ("activation", "film_position", "gamma_offset")}
    hold(replace(row["case"], **options), row["dtype"], row["channels_last"])


@pytest.mark.parametrize("channels", [2, 16])
def test_more_taps_than_an_integer_has_bits(channels):
    hold(Case("long_kernel", (1, channels, 24), (9, channels, 33), padding=16))


@pytest.mark.parametrize("entry", [Entry("halves", 16, 128, 16, 4, 2), Entry("rows", 64, 32, 32, 8, 2)], ids=str)
def test_tilings(entry):
    case = Case("tilings", (2, 20, 5, 6), (140, 20, 2, 3), padding=(1, 0), activation="silu", film_position="pre")
    with autotune.pinned({"forward": entry, "recompute": entry}):
        hold(case, channels_last=entry.channels == 128)


@pytest.mark.parametrize("wanted", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 1, 0, 1)], ids=str)
@pytest.mark.parametrize("position", ["post", "pre"])
def test_only_what_is_wanted_and_absent_tensors(wanted, position):
    case = replace(FEW, film_position=position, activation="leaky_relu")
    tensors = tensors_of(case, torch.float32)
    if not wanted[1]:
        tensors[2] = None
    if not any(wanted[2:]):
        tensors[3] = tensors[4] = None
    grad = incoming_gradient(case, tensors)
    found, complete = (sums_of(case, tensors, grad, asked) for asked in (wanted, (True,) * 4))
    for asked, one, other in zip(wanted, found, complete, strict=True):
        assert (one is not None) == bool(asked)
        assert one is None or torch.equal(one, other)
    expected = run(case, tensors, grad, "reference", torch.float32)[3:]
    for one, other in zip(complete[1:], expected, strict=True):
        if other is not None:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


def test_views_and_offsets_in_64_bits_give_the_same(monkeypatch):
    tensors = tensors_of(PLAIN, torch.float32)
    grad = incoming_gradient(PLAIN, tensors)
    expected = sums_of(PLAIN, tensors, grad)
    wide = torch.zeros(2, 36)
    wide[:, ::2] = tensors[3]
    turned = tensors[1].permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    views = [tensors[0].transpose(2, 3).contiguous().transpose(2, 3), turned, tensors[2], wide[:, ::2], tensors[4]]
    batch_last = grad.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    found = sums_of(PLAIN, views, batch_last)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    monkeypatch.setattr(launch, "needs_64_bits", lambda *layouts: True)
    for module in (recompute, finish):
        module._plan.cache_clear()
    found = sums_of(PLAIN, tensors, grad)
    for module in (recompute, finish):
        module._plan.cache_clear()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("activation", "position"), [("relu", "post"), ("leaky_relu", "pre"), ("gelu", "pre")])
def test_what_is_not_finite_is_so_where_plain_pytorch_has_it(activation, position):
    case = replace(FEW, activation=activation, film_position=position)
    tensors = tensors_of(case, torch.float32)
    tensors[0][0, 1, 3, 3] = float("nan")
    tensors[3][2, 4] = float("inf")
    tensors[2][7] = float("inf")
    grad = torch.randn(3, 26, 3, 3, generator=torch.Generator().manual_seed(2))
    grad[1, 2, 1, 1] = float("inf")
    expected = run(case, tensors, grad, "reference", torch.float32)
    problem = problem_of(case, tensors)
    found = [KERNELS.fused(problem, tensors, False, None)[0], *sums_of(case, tensors, grad)[1:]]
    for one, other in zip(found, [expected[0], *expected[3:]], strict=True):
        assert not other.isfinite().all() and torch.equal(one.isfinite(), other.isfinite())


def test_empty_batch():
    tensors = tensors_of(replace(FEW, input=(0, 3, 7, 8)), torch.float32)
    dz, *sums = sums_of(FEW, tensors, torch.zeros(0, 26, 3, 3))
    assert dz.shape == (0, 26, 3, 3) and [t.shape for t in sums] == [(26,), (0, 26), (0, 26)] and (sums[0] == 0).all()
