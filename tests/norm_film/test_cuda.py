"""norm_film's CUDA kernels on the emulator: the tests that every backend has, and every way in which groups are shared
out among blocks, each of which small limits reach with small tensors."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from film_kernels.backends.compiled import packed_norm_options
from film_kernels.backends.cuda_norm import CudaNormFilm
from tests.helpers import emulation
from tests.helpers.cases import EMULATED
from tests.helpers.norm_cases import Case, assert_as_good_as_plain, gradients, ours, problem_of, tensors_of
from tests.helpers.subprocesses import run_python

from . import test_backends
from .hostile import right_calls
from .test_memory import test_nothing_is_kept_without_a_gradient, test_two_numbers_a_group_are_kept  # noqa: F401
from .test_modules import test_in_evaluation_an_infinity_stays_where_it_is  # noqa: F401
from .test_numerics import *  # noqa: F403

pytestmark = [
    pytest.mark.skipif(not EMULATED, reason="the sources are not here, only the tests"),
    pytest.mark.usefixtures("one_thread"),
]
SINGLE = [
    case if case.dtype != torch.float64 else replace(case, dtype=torch.float32) for case in test_backends.CASES
]  # as the kernels have no float64


@pytest.fixture
def backend(emulator):
    """In place of the other backends."""
    emulator(0)
    return "cuda"


@pytest.mark.parametrize("case", SINGLE, ids=str)
def test_output_and_gradients(emulator, case):
    emulator(SINGLE.index(case) % len(EMULATED))  # an order of warps
    assert_as_good_as_plain(case, "cuda")


# Bytes that a block holds, sixteens of bytes of a thread, chunks of a block: smaller than in csrc/cuda/norm_cut.h.
HELD, SPLIT, MANY = (), (0, 16, 8), (0, 1, 2)
SHARED_OUT = [  # a case, the limits, and what they lead to: whether it is held, elements at once, chunks
    (Case((2, 6, 16, 16), "group", 2), HELD, (1, 4, 1)),
    (Case((2, 6, 16, 16), "group", 2), SPLIT, (0, 4, 1)),
    (Case((2, 6, 16, 16), "group", 2, "gelu"), MANY, (0, 4, 2)),
    (Case((2, 6, 13, 13), "group", 2, "tanh", "post"), HELD, (1, 1, 1)),
    (Case((2, 6, 13, 13), "group", 1, "mish"), MANY, (0, 1, 6)),
    (Case((3, 5, 4, 64), "batch"), HELD, (1, 4, 1)),
    (Case((3, 5, 4, 64), "batch", activation="relu"), MANY, (0, 4, 2)),
    (Case((2, 3, 8, 320), "group", 1, dtype=torch.bfloat16), HELD, (1, 4, 1)),
    (Case((2, 16, 9, 8), "group", 4, layout="channels_innermost"), HELD, (1, 4, 1)),
    (Case((2, 16, 9, 8), "group", 4, layout="channels_innermost"), SPLIT, (0, 4, 1)),
    (Case((2, 16, 9, 8), "group", 2, "gelu_tanh", layout="channels_innermost"), MANY, (0, 4, 2)),
    (Case((2, 24, 5, 5), "group", 4, "relu", "post", layout="channels_innermost"), HELD, (1, 4, 1)),
    (Case((2, 15, 7, 6), "group", 5, layout="channels_innermost"), HELD, (1, 1, 1)),
    (Case((2, 15, 7, 6), "group", 1, "sigmoid", layout="channels_innermost"), MANY, (0, 1, 3)),
    (Case((3, 40, 6, 7), "batch", layout="channels_innermost", dtype=torch.float16), SPLIT, (0, 4, 1)),
    (Case((1, 320, 6, 7), "group", 1, layout="channels_innermost"), HELD, (0, 4, 1)),
    (Case((2, 40, 12, 13), "group", 2, layout="channels_innermost", dtype=torch.bfloat16), MANY, (0, 4, 4)),
]


@pytest.mark.parametrize(("case", "limits", "expected"), SHARED_OUT, ids=str)
def test_every_way_to_share_out(backend, monkeypatch, case, limits, expected):
    case = case if case.dtype != torch.float64 else replace(case, dtype=torch.float32)
    tensors = tensors_of(case)
    problem = problem_of(case, tensors)
    cut = torch.ops.film_kernels_cuda.norm_forward_cut(
        tensors[0], *packed_norm_options(problem), problem.channels_last, limits
    )
    assert tuple(cut[:3]) == expected
    monkeypatch.setattr(CudaNormFilm, "limits", limits)
    assert_as_good_as_plain(case, backend, draws=3)


@pytest.mark.parametrize(
    "case",
    [  # several positions of a thread, of which the last are not there; more channels than are held; single elements
        Case((2, 64, 3, 13), "rms", layout="channels_innermost", dtype=torch.bfloat16),
        Case((3, 1030, 1, 3), "channel", layout="channels_innermost", dtype=torch.float32),
        Case((1, 1044, 1, 2), "l2", activation="gelu", layout="channels_innermost", dtype=torch.float32),
        Case((1, 37, 5, 5), "channel", activation="none", layout="channels_innermost", dtype=torch.float16),
        Case((2, 270, 4, 3), "channel", dtype=torch.float32),
        Case((1, 259, 1, 7), "rms", film_position="post", dtype=torch.float32),
    ],
    ids=str,
)
def test_channels_of_a_position(backend, case):
    assert_as_good_as_plain(case, backend, draws=3)


@pytest.mark.parametrize("limits", [HELD, MANY], ids=str)
@pytest.mark.parametrize(
    "case",
    [
        Case((2, 6, 9, 16), "group", 2),
        Case((2, 12, 5, 6), "group", 2, layout="channels_innermost"),
        Case((2, 6, 9, 16), "channel"),
        Case((2, 12, 5, 6), "rms", layout="channels_innermost"),
    ],
    ids=str,
)
def test_the_same_bits_in_any_order_of_warps(emulator, monkeypatch, case, limits):
    monkeypatch.setattr(CudaNormFilm, "limits", limits)
    case = replace(case, dtype=torch.float32)
    tensors, grad, results = tensors_of(case), torch.randn(case.input), []
    for seed in range(3):
        emulator(seed)
        results.append(gradients(lambda leaves: ours(case, leaves, "cuda"), tensors, grad))
    for other in results[1:]:
        for one, same in zip(results[0], other, strict=True):
            assert torch.equal(one, same)


def test_reasons(emulator):
    kernels, case = CudaNormFilm(), Case((2, 6, 3, 4), "group", 2, dtype=torch.float32)
    problem = problem_of(case, tensors_of(case))
    assert kernels.why_not(problem) is None and kernels.is_slow(problem)
    assert "float64" in kernels.why_not(problem._replace(dtype=torch.float64))
    assert "meta" in kernels.why_not(problem._replace(device=torch.device("meta")))


@pytest.mark.parametrize("name", ["norm_forward", "norm_backward"])
def test_what_the_kernels_take_for_granted_is_checked(emulator, name):
    operator, arguments = right_calls((2, 4, 5, 6), library="cuda")[name]
    operator(**arguments)
    for wrong, words in (((0, 1), "limits must be none or three"), ((0, -1, 1), "limits must be at least 0")):
        with pytest.raises(RuntimeError, match=words):
            operator(**arguments, limits=wrong)
    operator, arguments = right_calls((2, 4, 5, 6), library="cuda", dtype=torch.float64)[name]
    with pytest.raises(RuntimeError, match="input must be of dtype float32, bfloat16 or float16"):
        operator(**arguments)


def test_no_call_ends_the_process():
    library = str(emulation.cuda_library())
    done = run_python(
        "-W", "ignore", "-m", "tests.norm_film.hostile", "0", "1000", "cuda", FILM_KERNELS_CUDA_EMULATOR=library
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answered, raised = map(int, re.findall(r"\d+", done.stdout))
    assert answered > 200 and raised > 200
