"""The convolution by Hopper's own instructions on a card: every tile, its bits beside those of the other kernels, and
through the front door."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from film_kernels import arguments, backends, conv_film
from film_kernels.backends import cuda_hopper
from film_kernels.backends.compiled import packed_options
from tests.helpers.cases import Case, pre_activation, problem_of, tensors_of

# Tiles and channels that are filled and that are not, several samples in a tile, one sample in several.
CASES = (
    Case("padded", (3, 64, 30, 31), (136, 64, 3, 3), padding=1),
    Case("pointwise_strided", (6, 256, 10, 10), (512, 256, 1, 1), stride=2, film_position="pre"),
    Case("few_channels", (2, 8, 40, 24), (8, 8, 3, 3), padding=2, dilation=2, activation="leaky_relu"),
    Case(
        "same_even_kernel", (9, 24, 6, 5), (72, 24, 4, 2), padding="same", activation="leaky_relu", film_position="pre"
    ),
    Case("far", (1, 16, 258, 20), (64, 16, 2, 3), stride=(1, 8), padding=(127, 0), dilation=(254, 1)),
    Case("one_position", (5, 48, 4, 4), (24, 48, 4, 4), activation="none"),
    Case("large", (8, 128, 56, 56), (256, 128, 3, 3), padding=1),
)


@pytest.fixture(scope="module")
def hopper():
    """Where the card and the library can."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("it needs a GPU of compute capability 9.0")
    reason = backends.BACKENDS["cuda"].unavailable()
    assert reason is None, reason
    if not hasattr(torch.ops.film_kernels_cuda, "hopper_forward"):
        pytest.skip("the library was built without it (FILM_KERNELS_HOPPER=1)")
    return torch.device("cuda")


def rms(difference: torch.Tensor) -> float:
    return float(difference.double().square().mean().sqrt())


@pytest.mark.parametrize("tile", range(-1, 3))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_and_bits(hopper, case, dtype, tile):
    """At most twice plain PyTorch's error, and bits that say which branch was taken wherever a rounding cannot move it.
    Memory that is handed out holds NaN before."""
    case = replace(case, gamma_offset=1.0)
    tensors = [t.to(hopper) for t in tensors_of(case, dtype, channels_last=True)]
    better = conv_film(*(t.double() for t in tensors), *case.geometry, **case.options, backend="reference")
    problem = problem_of(case, tensors)
    assert cuda_hopper.why_not(problem) is None
    plain = conv_film(*tensors, *case.geometry, **case.options, backend="reference")
    for _ in range(2):
        poison = torch.full((4 * better.numel() + (1 << 20),), float("nan"), device=hopper)
        del poison
        y, bits = torch.ops.film_kernels_cuda.hopper_forward(*tensors, *packed_options(problem), True, tile)
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    error, theirs = rms(y - better), rms(plain - better)
    assert error <= 2 * max(theirs, torch.finfo(dtype).eps / 2 * rms(better)), (error, theirs)
    if case.activation == "none":
        assert bits.numel() == 0
        return
    v = pre_activation(case, tensors, torch.float64)
    unsure = v.abs() <= 4 * (pre_activation(case, tensors, dtype).double() - v).abs().max()
    found = (
        (bits[..., None] >> torch.arange(8, dtype=torch.uint8, device=hopper) & 1).reshape(*bits.shape[:1], -1).bool()
    )
    expected = (v > 0).permute(0, 2, 3, 1).reshape(found.shape)
    assert bool(((found == expected) | unsure.permute(0, 2, 3, 1).reshape(found.shape)).all())


def test_without_bias_and_film_and_with_strided_factors(hopper):
    """What is not given, gamma of every second channel's row and beta expanded, NaN in the input."""
    case = CASES[0]
    tensors = [t.to(hopper) for t in tensors_of(case, torch.bfloat16, channels_last=True)]
    wide = torch.randn(3, 2, 136, device=hopper, dtype=torch.bfloat16)
    tensors[0][1, 3, 4, 5] = float("nan")
    for bias, gamma, beta in (
        (None, None, None),
        (tensors[2], wide[:, 1], None),
        (None, None, wide[0, :1].expand(3, -1)),
        (tensors[2], wide[:, 0], wide[:, 1]),
    ):
        given = [*tensors[:2], bias, gamma, beta]
        expected = conv_film(*(None if t is None else t.double() for t in given), *case.geometry, backend="reference")
        problem = arguments.prepare(tuple(given), (*case.geometry, "relu", 0.0, "post", 0.0, "fast"))[0]
        found, _ = torch.ops.film_kernels_cuda.hopper_forward(*given, *packed_options(problem), False, -1)
        torch.testing.assert_close(found.double(), expected, rtol=2e-2, atol=2e-2, equal_nan=True)
        assert found.isnan().any() and not found[[0, 2]].isnan().any()


def test_front_door_and_gradients(hopper, monkeypatch):
    """Output and gradients as the other kernels of the same backend have them, by the same bits."""
    case = replace(CASES[0], keep="bits")

    def run():
        backends.forget_choices()
        leaves = [t.to(hopper).requires_grad_() for t in tensors_of(case, torch.float16, channels_last=True)]
        y = conv_film(*leaves, *case.geometry, **case.options, backend="cuda")
        grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
        return [y.detach(), *torch.autograd.grad(y, leaves, grad)]

    expected = run()
    called = []
    forward = torch.ops.film_kernels_cuda.hopper_forward
    monkeypatch.setattr(torch.ops.film_kernels_cuda, "hopper_forward", lambda *a: (called.append(1), forward(*a))[1])
    monkeypatch.setenv("FILM_KERNELS_CUDA_FORWARD", "hopper")
    found = run()
    backends.forget_choices()
    assert called == [1]
    for ours, theirs in zip(found, expected, strict=True):
        assert rms(ours - theirs) <= 1e-2 * rms(theirs)
