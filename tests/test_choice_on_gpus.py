"""Which backend serves on a GPU, by what was measured on one."""

from __future__ import annotations

import pytest
import torch

from film_kernels import backends
from film_kernels.problems import conv_film, norm_film

H200 = torch.device("cuda")


def on_a_card(input, weight, dtype=torch.bfloat16, channels_last=True, **options):
    """The record of a call on a GPU, which nobody has to have."""
    given = {
        "stride": 1, "padding": weight[2] // 2, "dilation": 1, "groups": 1, "activation": "relu",
        "negative_slope": 0.01, "film_position": "post", "gamma_offset": 0.0, "keep": "fast", **options,
    }  # fmt: skip
    rows = (input[0], weight[0])
    kinds = [(torch.Size(shape), dtype, H200, torch.strided) for shape in (input, weight, rows[1:], rows, rows)]
    return conv_film.problem_of(kinds, channels_last, tuple(given.values()))


CLEVR = ((64, 128, 14, 14), (128, 128, 3, 3))
TUTORIAL = ((32, 3, 64, 64), (10, 3, 3, 3))


@pytest.mark.parametrize(
    ("problem", "triton", "cuda", "kept"),
    [
        (on_a_card(*CLEVR), True, False, "fast"),
        (on_a_card(*CLEVR, keep="least"), True, False, "least"),
        (on_a_card(*CLEVR, keep="bits"), False, False, "bits"),
        (on_a_card(*CLEVR, dtype=torch.float32), False, False, "fast"),
        (on_a_card(*CLEVR, channels_last=False), False, False, "fast"),
        (on_a_card((6, 1536, 10, 10), (512, 1536, 1, 1)), False, False, "fast"),
        (on_a_card(*TUTORIAL), True, False, "bits"),
        (on_a_card(*TUTORIAL, activation="silu"), True, False, "fast"),
        (on_a_card(*TUTORIAL, dtype=torch.float32, channels_last=False), False, True, "bits"),
        (on_a_card(*TUTORIAL, dtype=torch.float32, keep="least"), False, False, "least"),
    ],
)
def test_on_a_gpu_what_was_measured_to_be_faster_serves(problem, triton, cuda, kept):
    from film_kernels.backends.triton import launch

    of = {name: backends.BACKENDS[name].of(problem) for name in ("cuda", "triton")}
    with launch.recording("nvidia"):
        assert {name: not kernels.is_slow(problem) for name, kernels in of.items()} == {"cuda": cuda, "triton": triton}
    serving = of["cuda" if cuda else "triton"]
    assert serving.as_kept(problem).keep == kept
    with launch.recording("cdna"):
        assert of["triton"].is_slow(problem)


def test_on_a_gpu_norms_of_16_bits_have_kernels():
    from film_kernels.backends.triton import launch

    rows = (8, 64)
    for dtype, serves in ((torch.bfloat16, True), (torch.float16, True), (torch.float32, False)):
        shapes = ((8, 64, 16, 16), rows[1:], rows[1:], rows, rows)
        kinds = [(torch.Size(shape), dtype, H200, torch.strided) for shape in shapes]
        problem = norm_film.problem_of(kinds, False, ("group", 32, 1e-5, "silu", 0.01, "pre", 1.0, 1))
        assert backends.BACKENDS["cuda"].of(problem).is_slow(problem) != serves
        with launch.recording("nvidia"):
            assert backends.BACKENDS["triton"].of(problem).is_slow(problem)
