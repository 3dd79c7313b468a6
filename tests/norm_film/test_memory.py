"""What autograd keeps, and that results are the same bits every time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from film_kernels import NormFiLM, norm_film
from tests.helpers.kept import kept_bytes
from tests.helpers.norm_cases import SERVING, Case, gradients, ours, tensors_of

KEEPING = [name for name in SERVING if name != "reference"]
# A case for each way in which work may be shared out: samples, groups, channels, positions, and parts of one group.
SHARED = (
    Case((1, 6, 20011), "group", 1),
    Case((1, 6, 20011), "group", 6, layout="channels_innermost"),
    Case((1, 96, 61, 57), "group", 1, layout="channels_innermost"),
    Case((3, 24, 17, 19), "group", 8, activation="gelu"),
    Case((3, 24, 17, 19), "group", 8, activation="gelu", layout="channels_innermost"),
    Case((16, 32, 7, 7), "group", 4, activation="mish", film_position="post"),
    Case((7, 33, 11, 9), "batch", activation="relu"),
    Case((5, 3, 70, 60), "batch", layout="channels_innermost"),
    Case((64, 300), "batch"),
    *(Case((2, 64, 31, 33), norm) for norm in ("channel", "rms", "l2")),
    *(Case((2, 64, 31, 33), norm, layout="channels_innermost") for norm in ("channel", "rms", "l2")),
    *(Case((3, 501, 96), norm, channel_dim=-1, film_position="post") for norm in ("channel", "rms", "l2")),
    Case((2, 7, 1030), "channel", channel_dim=-1),
)


@pytest.mark.parametrize("activation", ["silu", "relu", "none", "mish"])
@pytest.mark.parametrize("position", ["pre", "post"])
@pytest.mark.parametrize(
    ("norm", "groups"), [("group", 4), ("group", 1), ("batch", None), ("channel", None), ("rms", None)]
)
@pytest.mark.parametrize("backend", KEEPING, indirect=True)
def test_two_numbers_a_group_are_kept(backend, norm, groups, position, activation):
    case = Case((3, 16, 9, 11), norm, groups, activation, position, dtype=torch.float32)
    tensors = [t.requires_grad_() for t in tensors_of(case)]
    count = {"group": 3 * (groups or 0), "batch": 16}.get(norm, 3 * 9 * 11)
    kept, _ = kept_bytes(lambda: ours(case, tensors, backend), tensors)
    assert 0 < kept <= (1 if norm == "rms" else 2) * 4 * count


def test_a_third_of_what_plain_pytorch_keeps():
    x = torch.randn(4, 32, 16, 16, requires_grad=True)
    gamma, beta = (torch.randn(4, 32, requires_grad=True) for _ in range(2))
    layer = NormFiLM(8, 32)
    known = [gamma, beta, *layer.parameters()]  # the input is counted on both sides: it is kept for this alone

    def plain():
        z = F.group_norm(x, 8, layer.weight, layer.bias)
        return F.silu(z * gamma[:, :, None, None] + beta[:, :, None, None])

    ours_keeps, _ = kept_bytes(lambda: layer(x, gamma, beta), known)
    plain_keeps, _ = kept_bytes(plain, known)
    assert x.numel() * 4 <= ours_keeps <= plain_keeps / 3 + 2 * 4 * 32 * 4


def test_nothing_is_kept_without_a_gradient(backend):
    case = Case((3, 16, 9, 11), "group", 4, dtype=torch.float32)
    tensors = tensors_of(case)
    assert kept_bytes(lambda: ours(case, tensors, backend), tensors)[0] == 0
    with torch.no_grad():
        tensors[0].requires_grad_()
        assert kept_bytes(lambda: ours(case, tensors, backend), tensors)[0] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", SHARED, ids=str)
@pytest.mark.parametrize("backend", [name for name in SERVING if name == "cpu"], indirect=True)
def test_same_bits_from_run_to_run_and_with_any_number_of_threads(backend, case, dtype):
    tensors = [t.to(dtype) for t in tensors_of(case)]
    grad = torch.randn(case.input, generator=torch.Generator().manual_seed(2)).to(dtype)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 2, 3):
            torch.set_num_threads(count)
            results.append(gradients(lambda leaves: ours(case, leaves, backend), tensors, grad))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for name, one, again in zip(("y", "dx", "dw", "db", "dgamma", "dbeta"), results[0], other, strict=True):
            assert torch.equal(one, again), name


@pytest.mark.parametrize("case", SHARED[::5], ids=str)
def test_same_bits_from_run_to_run(backend, case):
    tensors, grad = tensors_of(case), torch.randn(case.input, dtype=torch.float64)
    first, again = (gradients(lambda leaves: ours(case, leaves, backend), tensors, grad) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((9, 1, 16000, 16000), {"norm": "group", "num_groups": 1}),
        ((9, 4_000_000, 64), {"norm": "rms", "channel_dim": -1}),
    ],
    ids=["positions", "tokens"],
)
def test_tensors_past_2_to_the_31_elements(shape, options):
    """Offsets of input, output and gradient pass 2^31: the last sample must come out as it does alone. (15 GB)"""
    x = torch.zeros(shape, dtype=torch.bfloat16)
    assert x.numel() > 2**31
    x[-1].view(-1)[-100_000:] = torch.randn(100_000)
    gamma = torch.randn(9, shape[options.get("channel_dim", 1)]).bfloat16()
    one = torch.ones((), dtype=torch.bfloat16)
    alone = x[-1:].clone().requires_grad_()
    expected = norm_film(alone, gamma=gamma[-1:], backend="cpu", **options)
    expected.backward(one.expand_as(expected))
    y = norm_film(x.requires_grad_(), gamma=gamma, backend="cpu", **options)
    assert torch.equal(y[-1:], expected)
    y.backward(one.expand_as(y))
    assert torch.equal(x.grad[-1:], alone.grad)
