"""norm_film's Triton kernels in the interpreter: what every backend is held to, in small, and every way of cutting."""

from __future__ import annotations

import math

import pytest
import torch

from tests.helpers.cases import INTERPRETED
from tests.helpers.norm_cases import SIMULATED, Case, assert_as_good_as_plain, gradients, ours, problem_of, tensors_of
from tests.helpers.pairs import pairs

from . import test_backends, test_memory, test_modules, test_numerics
from .test_backends import NORMS

pytestmark = [
    pytest.mark.skipif("triton" not in INTERPRETED, reason="triton is not installed"),
    pytest.mark.usefixtures("one_thread"),
]
LAST = "channels_innermost"


@pytest.fixture
def backend(interpreter):
    """In place of the other backends."""
    return "triton"


def test_it_serves_norm_film():
    assert "triton" in SIMULATED


CASES = [
    test_backends._case(row)
    for row in pairs(
        {
            "norm": NORMS, "activation": ("silu", "relu", "none", "mish", "gelu"),
            "shape": ((2, 8, 7, 7), (2, 6, 40), (3, 24), (1, 40, 5, 5), (2, 5, 2, 3, 4)),
            "layout": ("contiguous", LAST, "some_channels"), "position": ("pre", "post"), "offset": (0.0, 1.0),
            "factors": ("rows", "chunks", "one_row"), "absent": test_backends.ABSENT[::2],
            "dtype": test_backends.DTYPES[:5], "grad_layout": ("contiguous", LAST, "expanded"),
        },
        test_backends._is_allowed,
    )
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_and_gradients(backend, case):
    assert_as_good_as_plain(case, backend, draws=4)


@pytest.mark.parametrize("layout", ["contiguous", LAST])
@pytest.mark.parametrize(("norm", "groups"), [("group", 2), ("batch", None), ("channel", None)])
def test_a_mean_of_10000(backend, norm, groups, layout):
    test_numerics.test_a_mean_of_10000(backend, norm, groups, torch.float32, layout)


@pytest.mark.parametrize(
    ("norm", "layout"), [(("group", 1), "contiguous"), (("batch", None), LAST), (("rms", None), LAST)]
)
def test_an_outlier_in_first_place(backend, norm, layout):
    test_numerics.test_an_outlier_in_first_place(backend, *norm, torch.float32, layout)


@pytest.mark.parametrize("value", [10000.1, 0.0])
@pytest.mark.parametrize(
    ("norm", "layout"), [(("group", 2), LAST), (("channel", None), "contiguous"), (("l2", None), LAST)]
)
def test_constant_groups(backend, norm, layout, value):
    test_numerics.test_constant_groups(backend, *norm, torch.float32, layout, value)


@pytest.mark.parametrize("size", [1e30, 1e18, 1e-30])
@pytest.mark.parametrize("norm", [("group", 2), ("rms", None), ("l2", None)], ids=str)
def test_values_far_from_1(backend, norm, size):
    test_numerics.test_values_far_from_1(backend, *norm, 1e-5, torch.float32, size)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("norm", "layout"), [(("group", 2), LAST), (("batch", None), "contiguous"), (("l2", None), LAST)]
)
def test_what_is_not_finite_stays_in_its_group(backend, norm, layout, value):
    test_numerics.test_what_is_not_finite_stays_in_its_group(backend, *norm, value, "silu", layout)


@pytest.mark.parametrize(("name", "value"), [("weight", math.nan), ("gamma", math.inf), ("grad", math.nan)])
@pytest.mark.parametrize("position", ["pre", "post"])
def test_what_is_not_finite_in_the_other_tensors(backend, name, value, position):
    test_numerics.test_what_is_not_finite_in_the_other_tensors(backend, name, value, position, "silu")


@pytest.mark.parametrize("position", ["pre", "post"])
def test_a_bias_that_cancels(backend, position):
    test_numerics.test_a_bias_that_cancels(backend, torch.float32, "silu", position, 0.0, 300.0)


@pytest.mark.parametrize("channel_dim", [1, -1])
def test_vectors_shorter_than_eps(backend, channel_dim):
    test_numerics.test_vectors_shorter_than_eps(backend, torch.float32, "pre", channel_dim)


def test_one_element_a_group(backend):
    test_backends.test_one_element_a_group(backend, (), "pre")


@pytest.mark.parametrize("channels_last", [False, True])
def test_in_evaluation_an_infinity_stays_where_it_is(backend, channels_last):
    test_modules.test_in_evaluation_an_infinity_stays_where_it_is(backend, channels_last)


@pytest.mark.parametrize("norm", [("group", 2), ("rms", None)], ids=str)
def test_what_is_kept(backend, norm):
    test_memory.test_two_numbers_a_group_are_kept(backend, *norm, "pre", "silu")


@pytest.fixture
def small_tiles(monkeypatch):
    """Of so few elements that small tensors take many, of slabs and of chunks of several tiles."""
    from film_kernels.backends.triton import autotune, norm_cut, norm_tuning

    monkeypatch.setattr(norm_cut, "_WIDEST", 8)
    monkeypatch.setattr(norm_cut, "_PROGRAMS", 1)
    monkeypatch.setattr(norm_cut.host, "multiprocessors", lambda device: 8)
    entry = norm_tuning.NormEntry("test", 32, 128)
    with autotune.pinned(dict.fromkeys(norm_tuning.KERNELS, entry)):
        yield entry
    for name in ("groups_cut_of", "channels_cut_of", "held_of", "across_of", "once_across_of"):
        getattr(norm_cut, name).cache_clear()


CUT = [  # a case; slots of a block, blocks of a group, chunks and tiles of one; or whether a position is one tile
    (Case((2, 6, 9, 10), "group", 2, "gelu", dtype=torch.float32), (1, 3, 1, 3)),
    (Case((1, 10, 13, 5), "group", 1, "mish", "post", layout=LAST, dtype=torch.float32), (2, 3, 5, 4)),
    (Case((1, 18, 5, 6), "group", 6, layout=LAST, dtype=torch.bfloat16), (4, 2, 3, 3)),
    (Case((3, 2, 150), "batch", dtype=torch.float32), (1, 1, 2, 3)),
    (Case((1, 41, 2, 3), "channel", dtype=torch.float32), False),
    (Case((2, 37), "rms", film_position="post", dtype=torch.float32), False),
    (Case((5, 9, 6), "channel", channel_dim=-1, dtype=torch.float32), True),
]


@pytest.mark.parametrize(("case", "expected"), CUT, ids=str)
def test_every_way_to_cut(backend, small_tiles, case, expected):
    from film_kernels.backends.triton import norm_cut

    problem = problem_of(case, tensors_of(case))
    cut = norm_cut.channels_cut_of(problem, small_tiles)
    if isinstance(expected, tuple):
        tiles = cut.sizes["size"] // cut.tile["ROWS"]
        assert (*norm_cut.slots_in(problem, small_tiles)[2:], cut.sizes["chunks"], tiles) == expected
    else:
        assert norm_cut.across_of(problem, small_tiles).tile["SINGLE"] == expected
    assert_as_good_as_plain(case, backend, draws=3)


def test_same_bits_from_run_to_run_with_whatever_memory_held(backend, small_tiles):
    case = Case((1, 4, 5, 9), "group", 2, dtype=torch.float32)
    tensors, grad = tensors_of(case), torch.randn(case.input)
    one, other = (gradients(lambda leaves: ours(case, leaves, backend), tensors, grad) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


LAUNCHES = [  # a case; how many forward, backward, and backward where the input's gradient alone is wanted
    (Case((2, 8, 7, 7), "group", 4, dtype=torch.float32), (1, 2, 1)),
    (Case((1, 4, 140, 140), "group", 4, dtype=torch.float32), (2, 3, 3)),
    (Case((2, 5, 24), "rms", channel_dim=-1, dtype=torch.float32), (1, 2, 1)),
    (Case((2, 8192), "channel", dtype=torch.float32), (1, 3, 1)),
]


@pytest.mark.parametrize(("case", "expected"), LAUNCHES, ids=str)
def test_what_fits_in_a_tile_is_read_once(interpreter, case, expected):
    from film_kernels.backends.triton import launch, norm_backend

    kernels, tensors, counts = norm_backend.TritonNormFilm(), tensors_of(case), []
    problem = problem_of(case, tensors)
    with launch.recording("cpu") as started:
        y, kept = kernels.forward(problem, tensors, True)
        counts.append(len(started))
        for wanted in ((True,) * 5, (True, *(False,) * 4)):
            started.clear()
            kernels.backward(problem, y, kept, tensors, wanted)
            counts.append(len(started))
    assert tuple(counts) == expected
