"""norm_film on a GPU: output and five gradients by the rule of tests/helpers/norm_cases.py, of every backend there."""

from __future__ import annotations

import pytest
import torch

from film_kernels.backends import BACKENDS
from tests.helpers.card import DEVICE, DRY, place
from tests.helpers.norm_cases import Case, assert_as_good_as_plain, gradients, ours, plain, problem_of, tensors_of
from tests.norm_film.test_backends import CASES

# Groups of every length: in registers, in shared memory, over several blocks; and channels on either side of a packet.
LARGE = (
    Case((4, 192, 32, 32), "group", 32, layout="channels_innermost", dtype=torch.bfloat16),
    Case((2, 64, 160, 161), "group", 4, "relu", dtype=torch.float16),
    Case((1, 32, 256, 300), "group", 1, "mish", dtype=torch.bfloat16, parameter_dtype=torch.float32),
    Case((2, 24, 65, 67), "group", 24, "gelu", "post", layout="channels_innermost", dtype=torch.float32),
    Case((8, 136, 28, 28), "batch", None, "relu", layout="channels_innermost", dtype=torch.float16),
    Case((32, 72, 28, 28), "batch", None, "tanh", dtype=torch.float32),
    Case((4, 1024, 776), "channel", None, "none", channel_dim=-1, dtype=torch.bfloat16),
    Case((2, 5000, 9), "channel", None, "silu", dtype=torch.float32),
    Case((4, 96, 64, 64), "rms", None, "silu", layout="channels_innermost", dtype=torch.bfloat16),
    Case((2, 256, 33, 31), "l2", None, "gelu_tanh", gamma_offset=1.0, dtype=torch.float16),
)
SMALL = tuple(case for case in CASES if case.dtype != torch.float64)


def served(backend: str, case: Case, tensors) -> None:
    """Skips what `backend` does not serve, with its reason."""
    reason = BACKENDS[backend].why_not(problem_of(case, [None if t is None else place(t) for t in tensors]))
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")


@pytest.mark.parametrize("case", LARGE[::4] if DRY else LARGE, ids=str)
def test_output_and_gradients_of_large_inputs(backend, case):
    served(backend, case, tensors_of(case))
    assert_as_good_as_plain(case, backend, draws=1, place=place)


@pytest.mark.parametrize("case", SMALL[::8] if DRY else SMALL, ids=str)
def test_output_and_gradients(backend, case):
    served(backend, case, tensors_of(case))
    assert_as_good_as_plain(case, backend, place=place)


@pytest.mark.parametrize("position", ["pre", "post"])
@pytest.mark.parametrize(("norm", "groups"), [("group", 3), ("batch", None), ("channel", None), ("rms", None)])
def test_any_subset_of_gradients(backend, norm, groups, position):
    case = Case((2, 6, 3, 4), norm, groups, "mish", position, gamma_offset=1.0, dtype=torch.float32)
    served(backend, case, tensors_of(case))
    tensors, grad = [place(t) for t in tensors_of(case)], torch.randn(case.input).to(DEVICE)
    everything = gradients(lambda leaves: plain(case, leaves), tensors, grad)[1:]
    for wanted in range(1, 32):
        leaves = [t.detach().clone().requires_grad_(bool(wanted >> i & 1)) for i, t in enumerate(tensors)]
        ours(case, leaves, backend).backward(grad)
        for leaf, expected in zip(leaves, everything, strict=True):
            assert (leaf.grad is None) == (not leaf.requires_grad)
            if leaf.requires_grad:
                torch.testing.assert_close(leaf.grad, expected, rtol=1e-4, atol=1e-4)
