"""What lies between forward and backward: hooks that change what was saved, users who write into arguments, and memory
that is given back."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.door_calls import freed
from tests.helpers.norm_cases import SERVING, Case, ours, plain, tensors_of
from tests.test_saved_tensors import SPOILT_FLOATS

KEEPING = [name for name in SERVING if name != "reference"]
PLACES = ("input", "weight", "bias", "gamma", "beta")


def case_of(activation="silu", position="pre", norm="group", groups=2):
    return Case((2, 6, 5, 7), norm, groups, activation, position, dtype=torch.float32)


def leaves(case):
    return [t.requires_grad_() for t in tensors_of(case, 3)]


def gradients(call, case, pack=None, unpack=None):
    tensors = leaves(case)
    if pack is None:
        y = call(tensors)
    else:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            y = call(tensors)
    return torch.autograd.grad(y.square().sum(), tensors)


@pytest.mark.parametrize("position", ["post", "pre"])
@pytest.mark.parametrize(
    ("pack", "unpack"),
    [
        (lambda t: t.half(), lambda t: t.float()),
        (lambda t: t.bfloat16(), lambda t: t.float()),
        (lambda t: t.double(), lambda t: t.float()),
        (lambda t: torch.stack([t, t], -1), lambda t: t[..., 0]),
        (lambda t: t.flip(0), lambda t: t.flip(0)),
        (lambda t: F.pad(t, (1, 2)), lambda t: t[..., 1:-2]),
        (lambda t: t.mT.contiguous() if t.dim() > 1 else t, lambda t: t.mT if t.dim() > 1 else t),
        (lambda t: (t.numpy().tobytes(), t.shape, t.dtype), lambda p: torch.frombuffer(p[0], dtype=p[2]).reshape(p[1])),
    ],
    ids=["half", "bfloat16", "double", "strided", "turned", "padded", "transposed", "bytes"],
)
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
def test_what_comes_back_in_another_form_gives_the_same_gradients(backend, position, pack, unpack):
    case = case_of(position=position)

    def detached(t):
        return pack(t.detach())

    expected = gradients(lambda t: plain(case, t), case)
    lossy = gradients(lambda t: plain(case, t), case, detached, unpack)
    found = gradients(lambda t: ours(case, t, backend), case, detached, unpack)
    for exact, theirs, result in zip(expected, lossy, found, strict=True):
        assert (result - exact).norm() <= 10 * (theirs - exact).norm() + 1e-5 * exact.norm()


@pytest.mark.parametrize("norm", ["group", "channel", "l2"])
@pytest.mark.parametrize("backend", KEEPING, indirect=True)
@pytest.mark.parametrize("place", range(4))
def test_what_comes_back_as_something_else_raises(backend, place, norm):
    """One of what is saved comes back as another tensor: no gradient can be right, and nothing may be read past its
    end."""
    case = case_of(norm=norm, groups=2 if norm == "group" else None)
    saved = []
    gradients(lambda t: ours(case, t, backend), case, lambda t: saved.append(t) or t, lambda t: t)
    assert len(saved) == 4
    for name, spoil in SPOILT_FLOATS.items():
        numbers = iter(range(99))

        def pack(t, numbers=numbers):
            return next(numbers), t

        def unpack(packed, spoil=spoil):
            return spoil(packed[1]) if packed[0] == place else packed[1]

        with pytest.raises(RuntimeError, match="came back as"):
            pytest.fail(f"{name}: {gradients(lambda t: ours(case, t, backend), case, pack, unpack)}")


@pytest.mark.parametrize("position", ["post", "pre"])
@pytest.mark.parametrize("activation", ["relu", "silu", "none"])
@pytest.mark.parametrize("name", ["bias", "beta"])
def test_bias_and_beta_may_be_written_into_after_forward(backend, name, activation, position):
    """As in plain PyTorch, whose backward reads neither."""
    case = case_of(activation, position)
    expected = gradients(lambda t: plain(case, t), case)
    tensors = leaves(case)
    y = ours(case, tensors, backend)
    slope = 2 * y.detach()
    with torch.no_grad():
        tensors[PLACES.index(name)].mul_(-3)
    for result, exact in zip(torch.autograd.grad(y, tensors, slope), expected, strict=True):
        torch.testing.assert_close(result, exact, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["input", "weight", "gamma"])
def test_what_backward_reads_may_not_be_written_into(backend, name):
    case = case_of()
    tensors = leaves(case)
    y = ours(case, tensors, backend)
    with torch.no_grad():
        tensors[PLACES.index(name)].mul_(-3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("name", ["bias", "beta"])
@pytest.mark.parametrize("backend", KEEPING, indirect=True)
def test_a_second_derivative_needs_them_as_they_were(backend, name):
    case = case_of()
    tensors = leaves(case)
    y = ours(case, tensors, backend)
    with torch.no_grad():
        tensors[PLACES.index(name)].mul_(-3)
    with pytest.raises(RuntimeError, match=f"{name}, whose values a second derivative needs, has been modified"):
        torch.autograd.grad(y.square().sum(), tensors, create_graph=True)


def test_the_output_may_be_written_into(backend):
    """Backward does not read it: a residual may be added in place."""
    case = case_of("silu")
    tensors = leaves(case)
    y = ours(case, tensors, backend)
    slope = torch.ones_like(y)
    (expected,) = torch.autograd.grad(y, tensors[0], slope, retain_graph=True)
    y.add_(tensors[0])
    (found,) = torch.autograd.grad(y, tensors[0], slope)
    torch.testing.assert_close(found, expected + 1)


@pytest.mark.parametrize("activation", ["none", "relu", "silu"])
@pytest.mark.parametrize("norm", ["channel", "batch", "group"])
def test_the_output_is_memory_of_its_own(backend, norm, activation):
    """Also where nothing is done to the input: groups of one element, no affine, no FiLM."""
    x = torch.randn(3, 4, 5)
    case = Case((3, 4, 5), norm, 4 if norm == "group" else None, activation, dtype=torch.float32)
    with torch.no_grad():
        y = ours(case, [x, None, None, None, None], backend)
    assert y.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


def test_inputs_are_let_go_of_with_the_graph(backend):
    case = case_of()
    tensors = leaves(case)
    x = tensors[0].clone()
    gone = weakref.ref(x.untyped_storage())
    y = ours(case, [x, *tensors[1:]], backend)
    del x
    y.sum().backward()
    del y
    gc.collect()
    assert gone() is None
    assert all(t.grad is not None for t in tensors)


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("backend", [name for name in SERVING if name == "cpu"], indirect=True)
def test_a_freed_tensor_is_not_an_absent_one(backend, name):
    case = case_of()
    tensors = tensors_of(case)
    tensors[PLACES.index(name)] = freed(tensors[PLACES.index(name)])
    with pytest.raises(RuntimeError, match=f"storage of {name} has 0 bytes"):
        ours(case, tensors, backend)


@pytest.mark.parametrize("name", ["input", "weight", "bias", "gamma", "beta", "kept", "grad"])
@pytest.mark.parametrize("backend", [name for name in SERVING if name == "cpu"], indirect=True)
def test_a_tensor_freed_before_backward(backend, name):
    case = case_of()
    tensors = [t.clone() for t in leaves(case)]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = ours(case, tensors, backend)
    grad = torch.ones_like(y)
    kept = next(t for t in saved if all(t is not other for other in tensors))
    of_name = dict(zip((*PLACES, "kept", "grad"), (*tensors, kept, grad), strict=True))
    of_name[name].untyped_storage().resize_(0)
    if name in ("bias", "beta"):  # which backward reads copies of
        y.backward(grad)
        return
    with pytest.raises(RuntimeError, match=r"storage of (\w+) has 0 bytes"):
        y.backward(grad)
