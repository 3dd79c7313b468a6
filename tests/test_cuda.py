"""The CUDA kernels' own sources on the emulator: tensor cores, every shape of tile, and that mistakes do not pass."""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from film_kernels.backends.cuda import Cuda, _uses_tensor_cores
from tests.helpers import cases, emulation
from tests.helpers.cases import (
    EMULATED,
    Seen,
    as_tf32,
    as_they_are,
    float32_products,
    hold_to_the_rule,
    incoming_gradient,
    problem_of,
    run,
    tensors_of,
)
from tests.helpers.subprocesses import run_python

pytestmark = pytest.mark.skipif(not EMULATED, reason="the sources are not here, only the tests")

# For tensor cores: channels_last, and channels in whole pieces of 16 bytes. Sizes on both sides of a tile's edges.
# The kernels that keep bits are all that there are; what else may be kept needs the library's.
Case = functools.partial(cases.Case, keep="bits")
PLAIN = Case("plain", (2, 24, 9, 7), (72, 24, 3, 3), padding=1)
GEOMETRIES = (
    PLAIN,
    Case("pointwise", (3, 32, 5, 7), (40, 32, 1, 1)),
    Case("many_channels", (1, 136, 5, 6), (72, 136, 3, 3), padding=1),
    Case("strided", (2, 24, 8, 7), (16, 24, 3, 3), stride=2, padding=1),
    Case("strided_pointwise", (2, 24, 5, 6), (24, 24, 1, 1), stride=2, activation="leaky_relu"),
    Case("stride_3_kernel_2", (1, 24, 8, 9), (16, 24, 2, 2), stride=(3, 1)),
    Case("dilated", (2, 24, 7, 8), (16, 24, 3, 3), padding=2, dilation=2),
    Case("dilated_strided", (1, 24, 9, 10), (24, 24, 3, 2), stride=(2, 3), padding=(2, 1), dilation=(2, 3)),
    Case("asymmetric_padding", (2, 24, 5, 6), (16, 24, 4, 2), padding="same"),
    Case("whole_input", (9, 24, 4, 4), (16, 24, 4, 4)),
    Case("eight_channels", (2, 8, 11, 9), (8, 8, 5, 5), padding=2),
    Case("more_taps_than_a_word_has_bits", (1, 8, 9, 8), (8, 8, 7, 7), padding=3),
    Case("more_taps_of_three_packets", (1, 24, 7, 8), (8, 24, 6, 6), padding=(2, 3)),
)
LARGE_TILES = (  # enough positions for them: tiles are chosen for the emulator's 4 multiprocessors
    Case("large_tile", (2, 24, 34, 33), (136, 24, 3, 2)),
    Case("middle_tile", (2, 24, 34, 33), (40, 24, 2, 3)),
    Case("large_tile_of_the_input", (2, 136, 34, 33), (24, 136, 2, 1), gamma_offset=1.0),
    Case("large_tile_of_many_samples", (40, 136, 8, 7), (24, 136, 1, 2), activation="leaky_relu"),
)
FORMULAS = (("relu", "pre"), ("leaky_relu", "post"), ("leaky_relu", "pre"), ("none", "post"), ("none", "pre"))
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@pytest.fixture(params=EMULATED)
def seed(request, emulator):
    number = int(request.param.removeprefix("cuda_"))
    emulator(number)
    with float32_products("tf32"):
        yield number


def check(case: cases.Case, dtype: torch.dtype, draws: int = 2) -> None:
    def draw(seed):
        return tensors_of(case, dtype, seed, channels_last=True)

    seen: Seen = as_tf32 if dtype == torch.float32 else as_they_are
    assert _uses_tensor_cores(problem_of(case, draw(0)))
    hold_to_the_rule(
        case,
        draw,
        lambda tensors, grad: run(case, tensors, grad, "cuda", dtype),
        draws,
        lambda grad: grad.contiguous(memory_format=torch.channels_last),
        seen,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", GEOMETRIES, ids=str)
def test_geometries(seed, case, dtype):
    check(case, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("activation", "position"), FORMULAS)
def test_formulas(seed, activation, position, dtype):
    check(replace(PLAIN, activation=activation, film_position=position, gamma_offset=1.0), dtype)


@pytest.mark.parametrize("case", LARGE_TILES, ids=str)
def test_large_tiles(emulator, case):
    with float32_products("tf32"):
        check(case, torch.bfloat16, draws=1)
        if case is LARGE_TILES[0]:
            check(case, torch.float32, draws=1)


def test_views_are_brought_into_shape(seed):
    """Whatever the strides and wherever a tensor begins, the kernels get whole pieces."""
    tensors = tensors_of(PLAIN, torch.float16, channels_last=True)
    grad = incoming_gradient(PLAIN, tensors)
    expected = run(PLAIN, tensors, grad, "cuda", torch.float16)
    shifted = torch.empty(tensors[0].numel() + 1, dtype=torch.float16)[1:]
    view = shifted.as_strided(tensors[0].shape, tensors[0].stride()).copy_(tensors[0])
    assert view.data_ptr() % 16 and view.is_contiguous(memory_format=torch.channels_last)
    wide = torch.zeros(2, 145, dtype=torch.float16)
    wide[:, 1::2] = tensors[3]
    pair = torch.cat([tensors[4], tensors[4]], 1)
    for weight, gradient in (
        (tensors[1].contiguous(), grad),
        (tensors[1].transpose(2, 3).clone().mT, grad.mT.clone().mT),
    ):
        views = [view, weight, tensors[2].repeat_interleave(2)[::2], wide[:, 1::2], pair[:, 72:]]
        for found, value in zip(run(PLAIN, views, gradient, "cuda", torch.float16), expected, strict=True):
            assert torch.equal(found, value)


def test_infinite_gamma_stays_with_its_own_positions(seed):
    tensors = tensors_of(PLAIN, torch.float16, channels_last=True)
    tensors[3][1, 2] = float("inf")
    grad = torch.zeros(2, 72, 9, 7, dtype=torch.float16)
    grad[0] = 1
    assert run(PLAIN, tensors, grad, "cuda", torch.float16)[1][0].isfinite().all()


@pytest.mark.parametrize(("position", "offset"), [("post", 0.0), ("pre", 1.0), ("post", 0.5)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_gradient_is_dropped_where_relu_is_off_whatever_it_is(seed, dtype, position, offset):
    """In dz and u. dgamma is NaN then in "post", as plain PyTorch's is: it sums g * relu(z)."""
    case = replace(PLAIN, film_position=position, gamma_offset=offset)
    tensors = tensors_of(case, dtype, channels_last=True)
    tensors[2][5] = tensors[4][:, 5] = -1000.0  # of a channel that is off everywhere
    tensors[3][:, 5] = 1.5
    grad = incoming_gradient(case, tensors)
    grad[:, 5] = 0
    spoiled = grad.clone()
    spoiled[0, 5, 2:4], spoiled[1, 5, 8, 6] = float("nan"), float("inf")
    for name, found, expected in zip(
        ("output", "input", "weight", "bias", "gamma", "beta"),
        *(run(case, tensors, g, "cuda", dtype) for g in (spoiled, grad)),
        strict=True,
    ):
        if position == "pre" or name not in ("gamma", "beta"):
            assert torch.equal(found, expected), name
        else:
            assert found[:, 5].isnan().any() and torch.equal(found[:, :5], expected[:, :5]), name


def test_nan_passes_through(seed):
    tensors = tensors_of(PLAIN, torch.bfloat16, channels_last=True)
    tensors[0][1, 3, 4, 5] = float("nan")
    grad = torch.ones(2, 72, 9, 7, dtype=torch.bfloat16)
    found, plain = (run(PLAIN, tensors, grad, name, torch.bfloat16) for name in ("cuda", "reference"))
    assert torch.equal(found[0].isnan(), plain[0].isnan()) and found[0].isnan().any()
    for ours, theirs in zip(found, plain, strict=True):
        assert not (theirs.isnan() & ~ours.isnan()).any()


def test_the_same_bits_in_any_order_of_warps(emulator):
    tensors = tensors_of(PLAIN, torch.float16, channels_last=True)
    grad = incoming_gradient(PLAIN, tensors)
    results = []
    for seed in range(3):
        emulator(seed)
        results.append(run(PLAIN, tensors, grad, "cuda", torch.float16))
    for other in results[1:]:
        for one, same in zip(results[0], other, strict=True):
            assert torch.equal(one, same)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shared_memory_is_met_without_bank_conflicts(seed, dtype):
    library = ctypes.CDLL(os.environ["FILM_KERNELS_CUDA_EMULATOR"])
    for count in (library.film_emulator_wavefronts, library.film_emulator_bank_conflicts):
        count.restype = ctypes.c_uint64
    library.film_emulator_reset_counters()
    tensors = tensors_of(PLAIN, dtype, channels_last=True)
    run(PLAIN, tensors, incoming_gradient(PLAIN, tensors), "cuda", dtype)
    for kind in (b"ldmatrix", b"cp.async", b"store"):
        assert library.film_emulator_wavefronts(kind) > 0
        assert library.film_emulator_bank_conflicts(kind) == 0, kind


def test_reasons(seed):
    backend, problem = Cuda(), problem_of(PLAIN, tensors_of(PLAIN, torch.float32, channels_last=True))
    assert backend.unavailable() is None and backend.why_not(problem) is None
    for change, word in (
        ({"channels_last": False}, "channels_last"),
        ({"dtype": torch.float64}, "float64"),
        ({"groups": 2}, "one group"),
        ({"stride": (1, 1, 1)}, "3d"),
        ({"weight_shape": (70, 24, 3, 3)}, "output channels that are a multiple of 4"),
        ({"input_shape": (2, 25, 9, 7)}, "input channels that are a multiple of 4"),
        ({"device": torch.device("meta")}, "meta"),
    ):
        assert word in backend.why_not(problem._replace(**change))
    with float32_products("ieee"):
        assert "tf32" in backend.why_not(problem)
        assert backend.why_not(problem._replace(input_shape=(2, 16, 9, 7))) is None


# A mistake in a kernel: file, what is there, what is there instead, and a result that it spoils.
MISTAKES = {
    "no_barrier_of_a_stage": ("convolve.cuh", "      __syncthreads();  // this stage has", "      // has", "output"),
    "a_wait_group_short": ("convolve.cuh", "wait<Shape::kStages - 2>", "wait<Shape::kStages - 1>", "output"),
    "a_tap_too_far": ("convolve.cuh", "++column, ++tap, offset", "++column, tap += 2, offset", "output"),
    "no_carry_of_a_row": ("convolve.cuh", "++row, offset += c.next_row", "++row", "output"),
    "no_barrier_of_the_sums": ("tile.cuh", "    __syncthreads();  // the stages", "    // the stages", "output"),
    "no_barrier_of_dx": ("grad_input.cu", "    __syncthreads();  // this stage has", "    // has", "grad_input"),
    "no_barrier_of_dW": ("grad_weight.cu", "      __syncthreads();  // this stage has", "      // has", "grad_weight"),
}


def run_apart(library: Path) -> subprocess.CompletedProcess[str]:
    return run_python("-m", "tests.helpers.emulated_run", FILM_KERNELS_CUDA_EMULATOR=str(library))


def test_without_a_mistake_nothing_differs(emulator):
    done = run_apart(emulation.cuda_library())
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_do_not_pass(mistake):
    """In one order of the warps at least the result is wrong, or the emulator stops the kernel."""
    file, right, wrong, spoiled = MISTAKES[mistake]
    changed = emulation.BUILD / "mistakes" / mistake
    changed.mkdir(parents=True, exist_ok=True)
    for name in {"forward.cu", "convolve.cuh", file} if file.endswith(".cuh") else {file}:
        text = (emulation.KERNELS / name).read_text()
        assert text.count(right) == (name == file)
        text = text.replace(right, wrong)
        if not (changed / name).exists() or (changed / name).read_text() != text:  # or it is not built again
            (changed / name).write_text(text)
    done = run_apart(emulation.cuda_library(changed=changed))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "stopped:" in done.stdout or spoiled in done.stdout.split(), done.stdout + done.stderr
