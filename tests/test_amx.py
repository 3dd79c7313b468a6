"""The CPU kernels that multiply tiles (AMX): blocks, tiles and units of every kind, as this process has them and,
where it has none, by an engine in plain C++ in a process of its own."""

import hashlib
import math
import os

import pytest
import torch
import torch.nn.functional as F

from film_kernels import available_backends, conv_film
from tests.helpers.cases import Case, assert_as_good_as_plain, tensors_of
from tests.helpers.subprocesses import run_python

EMULATED = "emulated_amx"
SETS = torch.ops.film_kernels_cpu.instruction_sets() if available_backends()["cpu"] is None else ""
IN_USE, IS_BUILT = SETS.partition(" ")[0], "amx, " in SETS
# What lies about the tiles: 16 positions by 16 channels, 32 products; two of them together.
CASES = (
    Case("rows_of_a_tile", (2, 32, 9, 16), (32, 32, 3, 3), padding=1, gamma_offset=1.0),
    Case("short_rows_read_on_through_the_padding", (3, 40, 7, 9), (48, 40, 3, 3), padding=1, film_position="pre"),
    Case("one_tile_of_channels", (2, 30, 6, 20), (15, 30, 3, 3), padding=(1, 0), gamma_offset=1.0),
    Case("three_tiles_of_channels_in_groups", (2, 128, 12, 12), (96, 64, 3, 3), padding=1, groups=2),
    Case("a_stride", (2, 64, 17, 33), (64, 64, 3, 3), padding=1, stride=2),
    Case("a_dilation", (2, 64, 14, 21), (32, 64, 3, 3), padding=(2, 3), dilation=(2, 3), activation="leaky_relu"),
    Case("5_x_5", (1, 32, 30, 40), (32, 32, 5, 5), padding=2),
    Case("1_x_1_as_one_row", (2, 320, 11, 13), (64, 320, 1, 1)),
    Case("1_x_1_of_many_positions", (2, 320, 40, 33), (32, 320, 1, 1)),
    Case("lines_of_5_in_short_samples", (7, 64, 8), (64, 64, 5), padding=2, film_position="pre"),
    Case("tiles_through_samples_of_4", (16, 64, 4), (64, 64, 3), padding=1, film_position="pre"),
    Case("tiles_through_samples_of_2_x_3", (9, 64, 2, 3), (64, 64, 2, 3), padding=(1, 2), activation="leaky_relu"),
    Case("a_line_longer_than_a_block", (1, 64, 2500), (32, 64, 5), padding=2),
    Case("all_positions_in_one_block", (2, 64, 4, 4), (128, 64, 3, 3), padding=1),
    Case("several_splits_and_rounds", (9, 96, 33, 31), (64, 96, 3, 3), padding=1),
    Case("a_stride_past_the_kernel", (2, 64, 13, 17), (64, 64, 2, 2), stride=3),
    Case("taps_far_apart", (1, 64, 3000), (64, 64, 5), padding=1000, dilation=500),
    Case("more_padding_than_kernel", (2, 64, 6, 9), (32, 64, 3, 3), padding=4),
)


def drawn(case, dtype, seed=0, channels_last=False):
    """Without gamma: the weight's gradient with it is left to other kernels."""
    tensors = tensors_of(case, dtype, seed, channels_last)
    return [*tensors[:3], None, tensors[4]]


def results(case, tensors):
    leaves = [None if t is None else t.clone().requires_grad_() for t in tensors]
    y = conv_film(*leaves, *case.geometry, **case.options, backend="cpu")
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], grad)]


LARGE = "several_splits_and_rounds"  # of float16, plain PyTorch takes a minute
DRAWN = [(case, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16) for case in CASES
         if (case.name, dtype) != (LARGE, torch.float16)]  # fmt: skip


@pytest.mark.parametrize("case, dtype", DRAWN, ids=[f"{dtype}-{case.name}" for case, dtype in DRAWN])
@pytest.mark.parametrize("channels_last", (False, True), ids=("contiguous", "channels_last"))
def test_output_and_gradients(case, channels_last, dtype):
    assert_as_good_as_plain(case, lambda seed: drawn(case, dtype, seed, channels_last), "cpu")


def test_gamma_is_multiplied_into_the_gradient():
    """Of the input's alone: with the weight's, gamma's own is asked for too."""
    for dtype, allowed in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 1e-3)):
        x, weight, bias, gamma, beta = tensors_of(CASES[0], dtype)
        leaves = [x.requires_grad_(), weight.requires_grad_()]
        y = conv_film(x, weight, bias, gamma, beta, padding=1, gamma_offset=1.0, backend="cpu")
        grad = torch.randn(y.shape).to(dtype)
        wide = [t.detach().double().requires_grad_(t.requires_grad) for t in (x, weight, bias, gamma, beta)]
        expected = (1 + wide[3])[:, :, None, None] * F.relu(F.conv2d(*wide[:3], padding=1)) + wide[4][:, :, None, None]
        found = torch.autograd.grad(y, leaves, grad)
        exact = torch.autograd.grad(expected, wide[:2], grad.double())
        for ours, theirs in zip(found, exact, strict=True):
            assert (ours.double() - theirs).norm() < allowed * theirs.norm()


def test_float32_loses_no_digits_to_those_of_bfloat16():
    """Three numbers of 8 digits hold the 24 of one: an element alone comes out as it was."""
    weight = torch.zeros(64, 64, 3, 3)
    weight[range(64), range(64), 1, 1] = 1
    x = torch.randn(1, 64, 8, 16) * torch.logspace(-25, 25, 64)[:, None, None]
    assert torch.equal(conv_film(x, weight, padding=1, activation="none", backend="cpu"), x)


@pytest.mark.parametrize("value", (float("inf"), float("nan"), 3.4e38, -3.4e38))
def test_numbers_that_bfloat16_does_not_have(value):
    """What is not finite stays where it is, and the largest numbers, which would be rounded to infinity, are none."""
    case = CASES[0]
    for place in range(2 if math.isfinite(value) else 1):  # an infinite weight is multiplied with the padding too
        tensors = drawn(case, torch.float32)
        tensors[1] /= 100
        tensors[place].view(-1)[77] = value
        with torch.no_grad():
            ours = conv_film(*tensors, *case.geometry, activation="none", backend="cpu")
            plain = F.conv2d(*tensors[:3], padding=1) + tensors[4][:, :, None, None]
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_any_number_of_threads_gives_the_same_bits():
    few = [case for case in CASES if case.name in (LARGE, "lines_of_5_in_short_samples", "a_dilation")]
    before = torch.get_num_threads()
    try:
        for case in few:
            found = []
            for threads in (1, 2, 3, 7):
                torch.set_num_threads(threads)
                found.append(results(case, drawn(case, torch.float32)))
            for other in found[1:]:
                assert all(map(torch.equal, found[0], other))
    finally:
        torch.set_num_threads(before)


def digest():
    """A number for all bits of all results."""
    found = hashlib.sha256()
    for case in CASES:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for result in results(case, drawn(case, dtype)):
                found.update(result.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@pytest.mark.skipif(not IS_BUILT, reason="the compiler did not know AMX")
@pytest.mark.skipif(IN_USE == EMULATED or not torch.cpu._is_avx512_supported(), reason="in use, or nowhere")
def test_the_emulated_engine():
    """The tests above, for processors without tiles. (float16 takes the way of bfloat16, and an engine in C++ time.)"""
    words = ("-q", "-p", "no:cacheprovider", "-k", "not torch.float16 and not (channels_last and bfloat16)", __file__)
    done = run_python("-m", "pytest", *words, FILM_KERNELS_CPU_ISA=EMULATED)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.skipif(IN_USE != "amx", reason="this process does not use the processor's tiles")
def test_the_processor_and_the_emulated_engine_give_the_same_bits():
    code = "from tests.test_amx import digest; print(digest())"
    done = run_python("-c", code, FILM_KERNELS_CPU_ISA=EMULATED)
    assert done.returncode == 0 and done.stdout.strip() == digest(), done.stderr[-3000:]


@pytest.mark.skipif("FILM_KERNELS_CPU_ISA" in os.environ, reason="asked for")
def test_a_processor_with_tiles_uses_them():
    assert IN_USE != EMULATED
    if IS_BUILT:
        assert (IN_USE == "amx") == (torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx())  # asks the system
