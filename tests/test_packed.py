"""Weights that are packed for the CPU kernels once: the same results, bit for bit, and nothing that is given for one
crashes."""

from __future__ import annotations

import gc
import random
import weakref

import pytest
import torch
import torch.nn.functional as F

from film_kernels import conv_film, packed, use_backend
from film_kernels.arguments import prepare
from film_kernels.backends.compiled import packed_options
from film_kernels.packed import conv_film_packed, remembered
from tests.helpers.cases import tensors_of
from tests.helpers.processor import has_tiles
from tests.helpers.spoiling import SPOILERS
from tests.test_winograd import CASES

OPERATORS = torch.ops.film_kernels_cpu


def packed_by_hand(x, weight, **options):
    """What the operators `pack` and `forward` take for such a call: the packed weight, and the packed options."""
    given = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **options}
    problem, *_ = prepare((x, weight, None, None, None), (*given.values(), "none", 0.01, "post", 0.0, "fast"))
    geometry = packed_options(problem)
    return OPERATORS.pack(weight, x.shape, *geometry), geometry


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("channels_last", (False, True), ids=("contiguous", "channels_last"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_winograd_from_packed_weights_is_the_same(case, channels_last, dtype):
    tensors = tensors_of(case, dtype, 0, channels_last)
    with use_backend("cpu"):
        packed_now = conv_film_packed(*tensors, *case.geometry, **case.options)
        assert torch.equal(packed_now, conv_film(*tensors, *case.geometry, **case.options))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize(("shape", "weight", "options"), [
    ((2, 40, 9, 11), (36, 40, 3, 3), {"stride": 2, "padding": 1}), ((3, 7, 6, 5), (19, 7, 1, 1), {}),
    ((2, 24, 8, 8), (24, 6, 3, 3), {"groups": 4}), ((2, 3, 20, 33), (10, 3, 3, 3), {"padding": 1}),
    ((2, 12, 50), (9, 12, 13), {"dilation": 2, "padding": 3}), ((1, 16, 12, 12), (16, 1, 3, 3), {"groups": 16}),
    ((1, 600, 4, 4), (33, 600, 2, 2), {}),
])  # fmt: skip
def test_other_kernels_from_packed_weights_are_the_same(dtype, shape, weight, options):
    x, w, gamma = torch.randn(shape, dtype=dtype), torch.randn(weight, dtype=dtype), torch.randn(shape[0], weight[0])
    given = {"gamma": gamma.to(dtype), "activation": "relu", "film_position": "pre", **options}
    with use_backend("cpu"):
        assert torch.equal(conv_film_packed(x, w, **given), conv_film(x, w, **given))


@pytest.mark.skipif(not has_tiles(), reason="it is a rule of the kernels with tiles")
@pytest.mark.parametrize(("dtype", "stays"), [(torch.float32, True), (torch.float16, True), (torch.bfloat16, False)])
def test_what_is_read_once_is_split_as_it_is_read(one_thread, dtype, stays):
    w = torch.randn(128, 128, 3, 3, dtype=dtype)
    few, many = (
        packed_by_hand(torch.randn(4, 128, *size, dtype=dtype), w, padding=1)[0] for size in ((8, 8), (16, 16))
    )
    assert (few.numel() < 64) == stays and many.nbytes > w.nbytes


def test_a_choice_that_is_forgotten_is_asked_for_again(monkeypatch):
    x, w, asked = torch.randn(1, 4, 5, 5, dtype=torch.float64), torch.randn(4, 4, 3, 3, dtype=torch.float64), []
    choice = packed.remembered_choice
    monkeypatch.setattr(packed, "remembered_choice", lambda *given: asked.append(1) or choice(*given))
    for calls in (1, 2):
        torch.testing.assert_close(conv_film_packed(x, w, activation="none"), F.conv2d(x, w))
        assert len(asked) == calls


def test_sparse_data_takes_the_tiles_that_it_needs():
    x, w = torch.randn(2, 32, 24, 24), torch.randn(40, 32, 3, 3)
    sparse = x * (torch.rand_like(x) < 0.05)
    with use_backend("cpu"):
        for one in (x, sparse, x):
            found = conv_film_packed(one, w, padding=1, activation="none")
            assert torch.equal(found, conv_film(one, w, padding=1, activation="none"))


def test_a_weight_is_packed_once_until_it_is_written_to(monkeypatch):
    made = []
    pack = packed.CpuConvFilm.pack
    monkeypatch.setattr(packed.CpuConvFilm, "pack", lambda *given: made.append(1) or pack(*given))
    x, w = torch.randn(2, 32, 16, 16), torch.nn.Parameter(torch.randn(32, 32, 3, 3))

    def check(times):
        with torch.no_grad(), use_backend("cpu"):
            for _ in range(2):
                found = conv_film_packed(x, w, padding=1, activation="none")
            torch.testing.assert_close(found, F.conv2d(x, w, padding=1), rtol=1e-4, atol=1e-4)
        assert len(made) == times

    check(1)
    with torch.no_grad():
        w.mul_(2)
    check(2)
    w.data = torch.randn(32, 32, 3, 3)  # other memory, of the same tensor
    check(3)
    x = torch.randn(3, 32, 20, 16)  # which is packed alike: it is made once, and found to be the same
    check(4)
    assert len({id(one.value) for one in packed._made[w].values()}) == 1


@pytest.mark.parametrize("recorded", (False, True))
def test_packed_weights_go_with_their_weight(recorded):
    w = torch.randn(32, 32, 3, 3, requires_grad=recorded)
    with use_backend("cpu"):
        conv_film_packed(torch.randn(2, 32, 16, 16), w, padding=1)
    gone = weakref.ref(next(iter(packed._made[w].values())).value)
    assert gone() is not None and not gone().requires_grad
    del w
    gc.collect()
    assert gone() is None


def test_there_is_a_bound_on_their_memory(monkeypatch):
    monkeypatch.setattr(packed, "MOST_BYTES", 0)
    x, w = torch.randn(2, 32, 16, 16), torch.randn(32, 32, 3, 3)
    with use_backend("cpu"):
        found = conv_film_packed(x, w, padding=1)
        assert [one.value for one in packed._made[w].values()] == [None]
        assert torch.equal(found, conv_film(x, w, padding=1))


def test_what_is_made_of_one_weight_has_an_end():
    w = torch.randn(3)
    for purpose in range(3 * packed._MOST_OF_ONE):
        assert remembered(w, (), purpose, lambda: purpose) == purpose  # noqa: B023  # called at once
    assert len(packed._made[w]) <= packed._MOST_OF_ONE


def test_a_gradient_is_refused_when_it_is_asked_for():
    x, w = torch.randn(2, 32, 16, 16), torch.randn(32, 32, 3, 3, requires_grad=True)
    with use_backend("cpu"):
        y = conv_film_packed(x, w, padding=1)
    with pytest.raises(RuntimeError, match=r"frozen=True.*torch\.no_grad"):
        y.sum().backward()


def test_an_input_without_a_batch():
    x, w = torch.randn(32, 16, 16), torch.randn(32, 32, 3, 3)
    with use_backend("cpu"):
        assert torch.equal(conv_film_packed(x, w, padding=1), conv_film(x, w, padding=1))


def test_other_backends_and_transforms_take_the_weight_as_it_is():
    x, w = torch.randn(2, 8, 9, 9), torch.randn(8, 8, 3, 3)
    expected = conv_film(x, w)
    with use_backend("vendor"):
        torch.testing.assert_close(conv_film_packed(x, w), expected)
    torch.testing.assert_close(torch.func.vmap(lambda one: conv_film_packed(one[None], w)[0])(x), expected)
    torch.testing.assert_close(torch.compile(conv_film_packed, backend="eager")(x, w), expected)


def test_the_operator_refuses_what_was_not_packed():
    x, w = torch.randn(2, 32, 16, 16), torch.randn(32, 32, 3, 3)
    made, geometry = packed_by_hand(x, w, padding=1)

    def call(given):
        return OPERATORS.forward(x, w, None, None, None, *geometry, False, False, given)[0]

    expected = call(None)
    assert torch.equal(call(made), expected)
    for wrong in (made.double(), made[:40], made[None], made[::2], made.new_empty(0)):
        with pytest.raises(RuntimeError, match="packed must be what the operator"):
            call(wrong)
    for other in (made[:-64], torch.cat([made, made]), torch.full_like(made, float("nan")), torch.zeros_like(made)):
        assert torch.equal(call(other), expected)  # for another size or way: the weight is packed at this call


def test_spoiled_arguments_end_no_process():
    draw = random.Random(0)
    x, w = torch.randn(2, 16, 10, 10), torch.randn(16, 16, 3, 3)
    made, geometry = packed_by_hand(x, w, padding=1)
    for _ in range(300):
        tensors = [x, w, made]
        at = draw.randrange(3)
        try:
            tensors[at] = draw.choice(SPOILERS)(tensors[at], draw)
            OPERATORS.forward(tensors[0], tensors[1], None, None, None, *geometry, False, False, tensors[2])
            OPERATORS.pack(tensors[1], x.shape, *geometry)
        except (RuntimeError, TypeError, IndexError):
            continue


def test_operators_by_pytorchs_own_checks():
    x, w = torch.randn(2, 16, 10, 10), torch.randn(16, 16, 3, 3)
    made, geometry = packed_by_hand(x, w, padding=1)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(OPERATORS.forward, (x, w, None, None, None, *geometry, False, False, made), test_utils=checks)
    torch.library.opcheck(OPERATORS.pack, (w, list(x.shape), *geometry), test_utils="test_schema")
