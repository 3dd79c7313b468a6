"""The CPU kernels that filter by Winograd: tiles, blocks and units of every kind, threads, numbers not finite."""

import math

import pytest
import torch
import torch.nn.functional as F

from film_kernels import conv_film
from tests.helpers.cases import Case, assert_as_good_as_plain, tensors_of

CASES = (
    Case("maps_of_a_few_tiles", (19, 24, 7, 5), (40, 24, 3, 3), padding=1),
    Case("groups_without_padding", (2, 64, 15, 18), (40, 32, 3, 3), groups=2, activation="leaky_relu"),
    Case("rows_longer_than_a_block", (1, 18, 3, 530), (17, 18, 3, 3), padding=(1, 0), gamma_offset=1.0),
    Case("more_padding_than_kernel", (2, 33, 6, 9), (16, 33, 3, 3), padding=4, film_position="pre"),
    Case("several_rounds", (3, 96, 40, 36), (70, 96, 3, 3), padding=1),
    Case("large_enough_for_larger_tiles", (3, 36, 45, 33), (42, 36, 3, 3), padding=1, film_position="pre"),
    Case("wide_enough_to_go_point_by_point", (1, 256, 24, 22), (272, 256, 3, 3), padding=1),
    Case("lines_of_3", (2, 80, 101), (67, 80, 3), padding=2),
    Case("lines_of_3_in_groups", (2, 128, 71), (128, 64, 3), padding=1, groups=2),
    Case("lines_of_5", (3, 64, 45), (70, 64, 5), padding=2, activation="leaky_relu"),
    Case("many_short_lines", (130, 64, 1, 16), (64, 64, 1, 5), padding=(0, 2)),
    Case("lines_of_5_in_groups", (2, 128, 71), (128, 64, 5), groups=2),
    Case("rows_of_an_image", (2, 64, 9, 17), (65, 64, 1, 5), padding=(0, 4), gamma_offset=1.0),
    Case("5_x_5", (2, 21, 13, 15), (18, 21, 5, 5), padding=2),
    Case("5_x_5_of_larger_maps", (3, 20, 45, 33), (25, 20, 5, 5), padding=(2, 1), film_position="pre"),
    Case("5_x_5_without_padding", (5, 40, 9, 6), (24, 40, 5, 5), activation="leaky_relu"),
    Case("7_x_7", (2, 18, 17, 11), (20, 18, 7, 7), padding=3, gamma_offset=1.0),
    Case("7_x_7_padded_by_more_than_half", (1, 16, 30, 31), (14, 16, 7, 7), padding=(3, 5)),
    Case("rows_of_5_longer_than_a_block", (1, 96, 5, 130), (17, 96, 5, 5), padding=2),
    Case("5_x_5_padded_by_more_than_half", (2, 16, 20, 21), (14, 16, 5, 5), padding=(2, 4)),
    Case("3_x_3_padded_by_more_than_half", (2, 64, 33, 32), (64, 64, 3, 3), padding=(1, 3)),
    Case("3_x_5", (2, 33, 24, 25), (36, 33, 3, 5), padding=(1, 2)),
    Case("5_x_3", (2, 24, 12, 19), (24, 24, 5, 3), padding=(2, 1)),
    Case("7_x_5", (2, 16, 12, 19), (24, 16, 7, 5), padding=(0, 2)),
    Case("5_x_7", (1, 16, 20, 21), (24, 16, 5, 7), padding=2),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("channels_last", (False, True), ids=("contiguous", "channels_last"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_output_and_gradients(case, channels_last, dtype):
    assert_as_good_as_plain(case, lambda seed: tensors_of(case, dtype, seed, channels_last), "cpu")


def results(tensors, grad, padding=1):
    leaves = [t.clone().requires_grad_() for t in tensors]
    y = conv_film(*leaves, padding=padding, backend="cpu")
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


def plain_results(tensors, grad):
    leaves = [t.clone().requires_grad_() for t in tensors]
    x, weight, bias, gamma, beta = leaves
    y = gamma[:, :, None, None] * F.relu(F.conv2d(x, weight, bias, padding=1)) + beta[:, :, None, None]
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


INFINITY, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    "place, value", (("input", INFINITY), ("input", NAN), ("input", 1.5e38), ("grad", INFINITY), ("grad", NAN))
)
def test_what_is_not_finite_stays_where_it_is(place, value):
    """Transformed, it would spread over a tile; 1.5e38 would become infinite though the results do not."""
    tensors = tensors_of(Case("", (2, 32, 9, 10), (32, 32, 3, 3)), torch.float32)
    tensors[1] /= 100
    grad = torch.randn(2, 32, 9, 10, generator=torch.Generator().manual_seed(1)) / 10
    (tensors[0] if place == "input" else grad)[1, 3, 4, 5] = value
    for ours, plain in zip(results(tensors, grad), plain_results(tensors, grad), strict=True):
        torch.testing.assert_close(ours.isfinite(), plain.isfinite())
        if not math.isfinite(value):
            finite = plain.isfinite()
            torch.testing.assert_close(ours[finite], plain[finite], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", (3, 5, 7))
def test_any_number_of_threads_gives_the_same_bits(kernel):
    tensors = tensors_of(Case("", (19, 24, 7, 5), (40, 24, kernel, kernel)), torch.float32)
    grad = torch.randn(19, 40, 7, 5, generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append(results(tensors, grad, padding=kernel // 2))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
