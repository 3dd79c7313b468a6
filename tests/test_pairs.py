"""The CPU kernels that multiply pairs of bfloat16: blocks, tiles and units of every kind, as this process has them and,
where it has none, by an engine in plain C++ in a process of its own."""

import hashlib
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from film_kernels import available_backends, conv_film, use_backend
from film_kernels.packed import conv_film_packed
from tests.helpers.cases import Case, assert_as_good_as_plain, tensors_of
from tests.helpers.processor import has_pairs
from tests.helpers.subprocesses import run_python

EMULATED = "emulated_avx512_bf16"
SETS = torch.ops.film_kernels_cpu.instruction_sets() if available_backends()["cpu"] is None else ""
IN_USE, IS_BUILT = SETS.partition(" ")[0], "avx512_bf16, " in SETS
# What lies about the tiles: 14 positions by 32 channels, chunks of 64 pairs; 8 channels by 48 products.
CASES = (
    Case("an_odd_number_of_channels", (2, 33, 9, 11), (35, 33, 1, 1), gamma_offset=1.0),
    Case("one_row", (3, 64, 15, 13), (64, 64, 1, 1), film_position="pre"),
    Case("several_chunks_and_panels", (2, 320, 11, 13), (70, 320, 1, 1), activation="leaky_relu"),
    Case("a_stride", (2, 34, 17, 12), (70, 34, 3, 5), padding=(1, 2), stride=2, gamma_offset=1.0),
    Case("a_stride_past_the_kernel", (2, 64, 13, 17), (64, 64, 2, 2), stride=3),
    Case("a_dilation", (3, 16, 30, 33), (20, 16, 5, 5), padding=2, dilation=2, activation="leaky_relu"),
    Case("strips_are_read", (1, 32, 30, 40), (32, 32, 5, 5), padding=2),
    Case("3_channels", (1, 3, 30, 30), (64, 3, 7, 7), padding=3, stride=2),
    Case("few_lanes", (2, 40, 12, 12), (9, 40, 5, 5), padding=2, film_position="pre"),
    Case("groups", (2, 64, 14, 14), (96, 32, 5, 5), padding=2, groups=2),
    Case("groups_that_share_bytes_of_bits", (2, 60, 13, 9), (30, 20, 5, 5), padding=2, groups=3),
    Case("lines_of_5_in_short_samples", (7, 64, 8), (64, 64, 5), padding=2, film_position="pre"),
    Case("rows_of_one_position", (9, 64, 4, 1), (48, 64, 3, 1), padding=(1, 0)),
    Case("a_line_longer_than_a_block", (1, 64, 2500), (32, 64, 5), padding=2),
    Case("several_splits", (5, 48, 33, 31), (40, 48, 3, 3), padding=1, stride=2),
    Case("more_padding_than_kernel", (2, 32, 6, 9), (32, 32, 1, 1), padding=3),
    Case("a_smooth_activation", (2, 48, 13, 10), (56, 48, 3, 3), padding=1, stride=2, activation="silu"),
    Case("no_activation", (2, 48, 13, 10), (56, 48, 3, 3), padding=1, stride=2, activation="none"),
)


def drawn(case, seed=0, channels_last=False):
    return tensors_of(case, torch.bfloat16, seed, channels_last)


def results(case, tensors):
    leaves = [None if t is None else t.clone().requires_grad_() for t in tensors]
    y = conv_film(*leaves, *case.geometry, **case.options, backend="cpu")
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], grad)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("channels_last", (False, True), ids=("contiguous", "channels_last"))
def test_output_and_gradients(case, channels_last):
    assert_as_good_as_plain(case, lambda seed: drawn(case, seed, channels_last), "cpu")


@pytest.mark.parametrize("case", CASES[:4], ids=lambda case: case.name)
def test_any_strides_are_read(case):
    tensors = drawn(case)
    x = tensors[0].transpose(-1, -2).contiguous().transpose(-1, -2)  # neither channels nor columns side by side
    x = x.new_empty(*x.shape, 2).copy_(x.unsqueeze(-1))[..., 0]
    weight = tensors[1].new_empty(*tensors[1].shape, 3).copy_(tensors[1].unsqueeze(-1))[..., 1]
    assert all(map(torch.equal, results(case, tensors), results(case, [x, weight, *tensors[2:]])))


@pytest.mark.parametrize("value", (float("inf"), -float("inf"), float("nan")))
@pytest.mark.parametrize("place", range(2), ids=("input", "grad"))
def test_what_is_not_finite_goes_where_it_belongs(value, place):
    """An odd number of columns leaves a position alone, beside one that is multiplied by 0."""
    x, weight = drawn(Case("odd", (1, 16, 5, 7), (32, 16, 3, 3)))[:2]
    grad = torch.randn(1, 32, 3, 4).bfloat16()
    (x, grad)[place].view(-1)[6] = value

    def of(y, leaves):
        return [y.detach(), *torch.autograd.grad(y, leaves, grad)]

    leaves = [x.requires_grad_(), weight.requires_grad_()]
    ours = of(conv_film(*leaves, stride=2, padding=1, activation="none", backend="cpu"), leaves)
    for found, plain in zip(ours, of(F.conv2d(*leaves, None, 2, 1), leaves), strict=True):
        assert torch.equal(found.isfinite(), plain.isfinite())


def test_gamma_is_multiplied_into_the_gradient():
    case = CASES[0]
    x, weight, bias, gamma, beta = drawn(case)
    leaves = [x.requires_grad_(), weight.requires_grad_()]
    y = conv_film(x, weight, bias, gamma, beta, gamma_offset=1.0, backend="cpu")
    grad = torch.randn(y.shape).bfloat16()
    wide = [t.detach().double().requires_grad_(t.requires_grad) for t in (x, weight, bias, gamma, beta)]
    expected = (1 + wide[3])[:, :, None, None] * F.relu(F.conv2d(*wide[:3])) + wide[4][:, :, None, None]
    exact = torch.autograd.grad(expected, wide[:2], grad.double())
    for ours, theirs in zip(torch.autograd.grad(y, leaves, grad), exact, strict=True):
        assert (ours.double() - theirs).norm() < 1e-2 * theirs.norm()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_packed_weight_gives_the_same_bits(case):
    tensors = drawn(case)
    with use_backend("cpu"):
        packed = conv_film_packed(*tensors, *case.geometry, **case.options)
        assert torch.equal(packed, conv_film(*tensors, *case.geometry, **case.options))


def test_any_number_of_threads_gives_the_same_bits():
    before = torch.get_num_threads()
    try:
        for case in CASES:
            found = []
            for threads in (1, 2, 3, 7):
                torch.set_num_threads(threads)
                found.append(results(case, drawn(case)))
            for other in found[1:]:
                assert all(map(torch.equal, found[0], other))
    finally:
        torch.set_num_threads(before)


def digest():
    """A number for all bits of all results."""
    found = hashlib.sha256()
    for case in CASES:
        for result in results(case, drawn(case)):
            found.update(result.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@pytest.mark.skipif(not IS_BUILT, reason="the compiler did not know AVX512_BF16")
@pytest.mark.skipif(IN_USE == EMULATED or not torch.cpu._is_avx512_supported(), reason="in use, or nowhere")
def test_the_emulated_engine():
    """The tests above, for processors that multiply no pairs."""
    done = run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, FILM_KERNELS_CPU_ISA=EMULATED)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.skipif(IN_USE != "avx512_bf16", reason="this process does not use the processor's pairs")
def test_the_processor_and_the_emulated_engine_give_the_same_bits():
    code = "from tests.test_pairs import digest; print(digest())"
    done = run_python("-c", code, FILM_KERNELS_CPU_ISA=EMULATED)
    assert done.returncode == 0 and done.stdout.strip() == digest(), done.stderr[-3000:]


@pytest.mark.skipif(not has_pairs(), reason="this process multiplies no pairs")
def test_what_is_too_small_for_normal_numbers_counts_as_zero():
    """As it does in the library's sums of bfloat16, where the processor makes them of pairs."""
    x, weight = torch.full((1, 64, 4, 4), 1e-39).bfloat16(), torch.full((64, 64, 1, 1), 1e30).bfloat16()
    assert x.count_nonzero() and not conv_film(x, weight, activation="none", backend="cpu").count_nonzero()


@pytest.mark.skipif("FILM_KERNELS_CPU_ISA" in os.environ, reason="asked for")
@pytest.mark.skipif(not IS_BUILT or IN_USE == "amx", reason="not built, or there is better")
def test_a_processor_uses_pairs_where_they_are_fast():
    intel = "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    assert (IN_USE == "avx512_bf16") == (torch.cpu._is_avx512_bf16_supported() and not intel)
