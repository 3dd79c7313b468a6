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


@pytest.mark.parametrize(
    ("input", "norm", "groups", "channels_last", "serves"),
    [
        ((64, 128, 16, 16), "group", 32, False, "triton"),
        ((64, 128, 16, 16), "group", 32, True, "triton"),
        ((32, 192, 64, 64), "group", 32, True, "cuda"),
        ((32, 192, 64, 64), "group", 32, False, "cuda"),
        ((16, 64, 128, 128), "group", 64, True, "triton"),
        ((16, 64, 128, 128), "group", 64, False, "cuda"),
        ((256, 128, 28, 28), "batch", None, True, "cuda"),
        ((32, 64, 64, 64), "rms", None, True, "triton"),
        ((32, 64, 64, 64), "rms", None, False, "triton"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_on_a_gpu_norms_of_16_bits_have_kernels(monkeypatch, input, norm, groups, channels_last, serves, dtype):
    from film_kernels.backends.triton import launch, norm_backend

    rows = input[:2]
    kinds = [(torch.Size(shape), dtype, H200, torch.strided) for shape in (input, rows[1:], rows[1:], rows, rows)]
    problem = norm_film.problem_of(kinds, channels_last, (norm, groups, 1e-5, "silu", 0.01, "pre", 1.0, 1))

    def serving():
        of = {name: backends.BACKENDS[name].of(problem) for name in ("cuda", "triton")}
        return [name for name, kernels in of.items() if not kernels.is_slow(problem)]

    with launch.recording("nvidia"):
        monkeypatch.setattr(norm_backend, "why_nowhere", lambda: "there is no Triton")
        assert serving() == (["cuda"] if dtype.itemsize == 2 else [])
        monkeypatch.setattr(norm_backend, "why_nowhere", lambda: None)
        assert serving() == ([serves] if dtype.itemsize == 2 else [])
    with launch.recording("cdna"):
        assert "triton" not in serving()
