"""What users of plain PyTorch rely on, of each norm: torch.func, forward mode, autocast, fake and meta tensors. What
PyTorch does with layers is in tests/test_with_pytorch.py."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from film_kernels import BatchNormFiLM, norm_film, use_backend
from tests.helpers.norm_cases import SERVING, Case, ours, plain, tensors_of
from tests.test_with_pytorch import WORDS, NormNet, X

pytestmark = pytest.mark.usefixtures("one_thread")
NORMS = (("group", 2), ("batch", None), ("channel", None), ("rms", None), ("l2", None))


@pytest.mark.parametrize("layout", ["contiguous", "channels_innermost"])
@pytest.mark.parametrize(("norm", "groups"), NORMS)
def test_torch_func_goes_through_the_plain_formula(norm, groups, layout):
    case = Case((3, 4, 5, 6), norm, groups, layout=layout)
    x, w, b, gamma, beta = tensors_of(case)
    call = lambda x, w, gamma: ours(case, [x, w, b, gamma, beta])  # noqa: E731
    # PyTorch 2.13 has no forward mode for group_norm in channels_last
    expected = lambda x, w, gamma: plain(case, [x.contiguous(), w, b, gamma, beta])  # noqa: E731
    many = torch.stack([x, x + 1, 2 * x], 1)
    mapped = torch.func.vmap(call, in_dims=(1, None, None))(many, w, gamma)
    torch.testing.assert_close(mapped, torch.stack([expected(many[:, i], w, gamma) for i in range(3)]))
    for argnums in ((0, 1, 2), (1, 2), (2,)):  # without the input's gradient too
        one, other = (
            torch.func.grad(lambda *args, f=f: f(*args).square().sum(), argnums)(x, w, gamma) for f in (call, expected)
        )
        torch.testing.assert_close(one, other)
    tangents = torch.ones_like(x), torch.ones_like(w), torch.ones_like(gamma)
    torch.testing.assert_close(*(torch.func.jvp(f, (x, w, gamma), tangents) for f in (call, expected)))
    with pytest.raises(ValueError, match="'vendor' cannot serve"), use_backend("vendor"):
        torch.func.vmap(call, in_dims=(1, None, None))(many, w, gamma)


@pytest.mark.parametrize(("norm", "groups"), NORMS)
def test_hessians(norm, groups):
    case = Case((2, 4, 2, 2), norm, groups, eps=0.1)
    x, w, b, gamma, beta = tensors_of(case)
    found, expected = (
        torch.func.hessian(lambda x, gamma, f=f: f(case, [x, w, b, gamma, beta]).sum(), (0, 1))(x, gamma)
        for f in (ours, plain)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize(("norm", "groups"), NORMS)
def test_forward_mode_in_channels_last(norm, groups, requires_grad):
    case, found = Case((2, 4, 5, 6), norm, groups), []
    x, *others = tensors_of(case)
    tangent = torch.randn_like(x)
    for format in (torch.contiguous_format, torch.channels_last):
        primal = x.contiguous(memory_format=format).requires_grad_(requires_grad)
        with forward_ad.dual_level():
            y = ours(case, [forward_ad.make_dual(primal, tangent), *others])
            found.append(forward_ad.unpack_dual(y).tangent.detach())
    torch.testing.assert_close(*found)


def test_meta_and_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.device("meta"):
        net, batch = NormNet(), BatchNormFiLM(8)
    assert net.first.weight.is_meta and net(X.to("meta"), WORDS.to("meta")).shape == (6, 72, 8)
    y = batch(torch.empty(2, 8, 3, device="meta", requires_grad=True))
    y.sum().backward()
    assert batch.weight.grad.is_meta
    real = net.to_empty(device="cpu")
    real.load_state_dict(NormNet().state_dict())
    assert torch.isfinite(real(X, WORDS)).all()
    for backend in (None, *SERVING):
        with FakeTensorMode():
            x = torch.randn(2, 8, 4, 5).to(memory_format=torch.channels_last)
            y = norm_film(x, "group", 2, gamma=torch.randn(2, 8), beta=torch.randn(8), backend=backend)
        assert y.shape == x.shape and y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("film_dtype", [torch.float32, None], ids=["factors of float32", "factors of 16 bits"])
@pytest.mark.parametrize("wide", [False, True], ids=["16 bits in", "float32 in"])
@pytest.mark.parametrize(("norm", "groups"), NORMS)
def test_autocast_gives_the_dtypes_that_plain_pytorch_gives(backend, norm, groups, wide, film_dtype, dtype):
    case = Case((2, 4, 5, 6), norm, groups, dtype=torch.float32)
    x, w, b, gamma, beta = tensors_of(case)
    x = x if wide else x.to(dtype)
    gamma, beta = (t.to(film_dtype or dtype) for t in (gamma, beta))
    if norm in ("rms", "l2"):
        b = None
    if norm in ("rms", "l2") and not wide:
        w = None  # plain PyTorch's own formulas of these widen the input: there is no one dtype to be held to
    tensors = [None if t is None else t.requires_grad_() for t in (x, w, b, gamma, beta)]
    with torch.autocast("cpu", dtype=dtype):
        found = ours(case, tensors, backend)
        z = {
            "group": lambda: F.group_norm(x, 2, w, b), "batch": lambda: F.batch_norm(x, None, None, w, b, True),
            "channel": lambda: F.layer_norm(x.movedim(1, -1), (4,), w, b).movedim(-1, 1),
            "rms": lambda: F.rms_norm(x.movedim(1, -1), (4,), w, 1e-5).movedim(-1, 1),
            "l2": lambda: F.normalize(x, dim=1, eps=1e-5) * (1 if w is None else w[:, None, None]),
        }[norm]()  # fmt: skip
        expected = F.silu(gamma[..., None, None] * z + beta[..., None, None])
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    given = [t for t in tensors if t is not None]
    for gradient, t in zip(torch.autograd.grad(found.float().sum(), given), given, strict=True):
        assert gradient.dtype == t.dtype


def test_inference_mode(backend):
    case = Case((2, 4, 5, 6), "group", 2)
    with torch.inference_mode():
        tensors = tensors_of(case)
        torch.testing.assert_close(ours(case, tensors, backend), plain(case, tensors))
