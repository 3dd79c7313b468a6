"""conv_film on a GPU: output and five gradients by the rule of tests/helpers/cases.py, of every backend there."""

from __future__ import annotations

import pytest
import torch

from film_kernels import conv_film
from film_kernels.activations import ACTIVATIONS
from film_kernels.backends import BACKENDS
from film_kernels.problems.conv_film import KEEPS
from tests.helpers.card import DEVICE, DRY, place
from tests.helpers.cases import (
    GEOMETRIES,
    Case,
    assert_as_good_as_plain,
    assert_close,
    float32_products,
    incoming_gradient,
    problem_of,
    run,
    tensors_of,
)
from tests.helpers.pairs import pairs

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Tiles of every size, with positions and channels that fill them and that do not.
WHOLE_PACKETS = (
    Case("middle", (4, 64, 32, 32), (64, 64, 3, 3), padding=1),
    Case("many_blocks", (8, 128, 30, 30), (136, 128, 3, 3), padding=1),
    Case("pointwise_packets", (6, 256, 10, 10), (512, 256, 1, 1)),
    Case("stem", (2, 3, 65, 67), (24, 3, 7, 7), stride=2, padding=3),
    Case("whole_input", (9, 24, 4, 4), (16, 24, 4, 4)),
    Case("dilated_strided", (1, 24, 9, 10), (24, 24, 3, 2), stride=(2, 3), padding=(2, 1), dilation=(2, 3)),
)
ROWS = [
    *pairs(
        {
            "case": (*GEOMETRIES, *WHOLE_PACKETS), "activation": tuple(ACTIVATIONS), "position": ("post", "pre"),
            "dtype": DTYPES, "keep": KEEPS, "channels_last": (True, False), "offset": (0.0, 1.0),
        },
        lambda row: (row["case"] in GEOMETRIES or row["channels_last"])
        and (ACTIVATIONS[row["activation"]].one_bit or row["case"].name in ("middle", "tutorial", "long_row")),
    )
]  # fmt: skip


def _case(row) -> Case:
    return row["case"].__class__(
        **{**vars(row["case"]), "activation": row["activation"], "film_position": row["position"],
           "keep": row["keep"], "gamma_offset": row["offset"]}
    )  # fmt: skip


def served(backend: str, case: Case, tensors) -> None:
    """Skips what `backend` does not serve, with its reason."""
    reason = BACKENDS[backend].why_not(problem_of(case, [None if t is None else place(t) for t in tensors]))
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")


def _words(row) -> str:
    words = (_case(row), row["keep"], str(row["dtype"])[6:], "channels_last" if row["channels_last"] else "nchw")
    return "-".join(map(str, words))


@pytest.mark.parametrize("row", ROWS[::8] if DRY else ROWS, ids=_words)
def test_output_and_gradients(backend, row):
    case, last = _case(row), row["channels_last"]

    def draw(seed):
        return tensors_of(case, row["dtype"], seed, last)

    served(backend, case, draw(0))
    assert_as_good_as_plain(case, draw, backend, last, place, draws=3)


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("case", WHOLE_PACKETS[:3], ids=str)
def test_tf32(backend, case, keep):
    """Beside plain PyTorch that may take its products in tf32 too: which digits a tensor core looks at is its own."""
    if DRY:
        pytest.skip("a CPU has no tf32")
    case = case.__class__(**{**vars(case), "keep": keep})

    def draw(seed):
        return tensors_of(case, torch.float32, seed, channels_last=True)

    with float32_products("tf32"):
        served(backend, case, draw(0))
        assert_as_good_as_plain(case, draw, backend, True, place, draws=2)


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("absent", [(2,), (3,), (4,), (3, 4), (2, 3, 4)], ids=str)
def test_absent_bias_gamma_and_beta(backend, absent, keep):
    case = Case("absent", (2, 8, 9, 8), (16, 8, 3, 3), film_position="pre", keep=keep)

    def draw(seed):
        return [None if i in absent else t for i, t in enumerate(tensors_of(case, torch.float32, seed))]

    served(backend, case, draw(0))
    assert_as_good_as_plain(case, draw, backend, place=place)


@pytest.mark.parametrize("keep", KEEPS)
def test_any_subset_of_gradients(backend, keep):
    case = Case("subset", (2, 16, 6, 5), (24, 16, 3, 3), padding=1, keep=keep)
    tensors = [place(t) for t in tensors_of(case, torch.float32, channels_last=True)]
    grad = torch.randn(2, 24, 6, 5).to(DEVICE)
    everything = run(case, tensors, grad, "reference", torch.float32)[1:]
    for wanted in range(1, 32):
        leaves = [t.clone().requires_grad_(bool(wanted >> i & 1)) for i, t in enumerate(tensors)]
        conv_film(*leaves, *case.geometry, **case.options, backend=backend).backward(grad)
        for leaf, expected in zip(leaves, everything, strict=True):
            assert (leaf.grad is None) == (not leaf.requires_grad)
            if leaf.requires_grad:
                assert_close(leaf.grad, expected)


@pytest.mark.parametrize("keep", KEEPS)
def test_views(backend, keep):
    """Any strides, and storages that begin within 16 bytes, in place of dense tensors with the same values."""
    case = Case("view", (2, 24, 9, 7), (72, 24, 3, 3), padding=1, keep=keep)
    tensors = tensors_of(case, torch.float16, channels_last=True)
    grad = place(incoming_gradient(case, tensors))
    served(backend, case, tensors)
    input, weight, bias, gamma, beta = (place(t) for t in tensors)
    expected = run(case, [input, weight, bias, gamma, beta], grad, backend, torch.float16)
    shifted = torch.empty(input.numel() + 1, dtype=input.dtype, device=DEVICE)[1:]
    shifted = shifted.as_strided(input.shape, input.stride()).copy_(input)
    assert shifted.data_ptr() % 16
    wide = torch.full((2, 24, 18, 10), float("nan"), dtype=input.dtype, device=DEVICE)
    sliced = wide[:, :, ::2, 2:9].copy_(input)
    half = torch.cat([input, input * float("nan")], 1).contiguous(memory_format=torch.channels_last)[:, :24]
    pair = torch.cat([gamma, beta], 1)
    others = (weight.contiguous(), bias.repeat_interleave(2)[::2], pair[:, :72], pair[:, 72:])
    for view, incoming in ((shifted, grad), (sliced, grad.mT.clone().mT), (half, grad.contiguous())):
        for found, one in zip(run(case, [view, *others], incoming, backend, torch.float16), expected, strict=True):
            torch.testing.assert_close(found, one, rtol=2e-3, atol=2e-2)


@pytest.mark.parametrize("size", [(0, 8, 6, 6), (2, 8, 2, 6)], ids=str)
def test_empty_results(backend, size):
    case = Case("empty", size, (16, 8, 3, 3))
    tensors = tensors_of(case, torch.float32)
    served(backend, case, tensors)
    leaves = [place(t).requires_grad_() for t in tensors]
    y = conv_film(*leaves, backend=backend)
    assert y.shape == (size[0], 16, size[2] - 2, 4)
    y.sum().backward()
    for leaf in leaves:
        assert leaf.grad.shape == leaf.shape and (leaf.grad == 0).all()


def test_three_dimensions_and_groups_are_the_librarys():
    for case in (
        Case("3d", (2, 4, 5, 6, 7), (8, 4, 3, 3, 3), padding=1),
        Case("groups", (2, 8, 12, 10), (12, 2, 3, 3), padding=2, dilation=2, groups=4),
    ):
        assert_as_good_as_plain(case, lambda seed, c=case: tensors_of(c, torch.float32, seed), "vendor", place=place)
