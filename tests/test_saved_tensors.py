"""What lies between forward and backward, of each operator: hooks that change what was saved, and users who write into
arguments."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.subjects import BOTH, NAMES, OTHER_NORMS, SMOOTH, with_backends

with_backends_and_norms = with_backends((*BOTH, SMOOTH, *OTHER_NORMS), keeping=True)


def gradients(subject, call, pack=None, unpack=None):
    tensors = subject.leaves()
    if pack is None:
        y = call(tensors)
    else:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            y = call(tensors)
    return torch.autograd.grad(y.square().sum(), tensors)


@with_backends((*BOTH, SMOOTH))
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
def test_what_comes_back_in_another_form_gives_the_same_gradients(subject, backend, position, pack, unpack):
    def detached(t):
        return pack(t.detach())

    def plain(tensors):
        return subject.plain(tensors, film_position=position)

    expected = gradients(subject, plain)
    lossy = gradients(subject, plain, detached, unpack)
    found = gradients(subject, lambda t: subject.ours(t, backend, film_position=position), detached, unpack)
    for exact, theirs, result in zip(expected, lossy, found, strict=True):
        assert (result - exact).norm() <= 10 * (theirs - exact).norm() + 1e-5 * exact.norm()


SPOILT = {
    "shorter": lambda t: t[:-1],
    "longer": lambda t: torch.cat([t, t]),
    "another rank": lambda t: t.unsqueeze(0),
    "empty": lambda t: t.new_empty(0),
    "elsewhere": lambda t: t.to("meta"),
    "complex": lambda t: t.to(torch.complex64),
}
SPOILT_FLOATS = {**SPOILT, "half": lambda t: t.half(), "double": lambda t: t.double()}
SPOILT_BITS = {**SPOILT, "no bytes": lambda t: t + 300.0, "fractions": lambda t: (t.float() + 1) / 3}


@with_backends_and_norms
@pytest.mark.parametrize("place", range(4))
def test_what_comes_back_as_something_else_raises(subject, backend, place):
    """One of what is saved comes back as another tensor: no gradient can be right, and nothing may be read past its
    end."""

    def call(tensors):
        return subject.ours(tensors, backend)

    saved = []
    gradients(subject, call, lambda t: saved.append(t) or t, lambda t: t)
    assert len(saved) == 4
    spoilt = SPOILT_BITS if saved[place].dtype == torch.uint8 else SPOILT_FLOATS
    for name, spoil in spoilt.items():
        numbers = iter(range(99))

        def pack(t, numbers=numbers):
            return next(numbers), t

        def unpack(packed, spoil=spoil):
            return spoil(packed[1]) if packed[0] == place else packed[1]

        with pytest.raises(RuntimeError, match="came back as"):
            pytest.fail(f"{name}: {gradients(subject, call, pack, unpack)}")


@with_backends()
@pytest.mark.parametrize("position", ["post", "pre"])
@pytest.mark.parametrize("activation", ["relu", "silu", "none"])
@pytest.mark.parametrize("name", ["bias", "beta"])
def test_bias_and_beta_may_be_written_into_after_forward(subject, backend, name, activation, position):
    """As in plain PyTorch, whose backward reads neither."""
    options = {"activation": activation, "film_position": position}
    if (words := subject.refusal(backend, **options)) is not None:
        with pytest.raises(ValueError, match=words):
            subject.ours(subject.tensors(), backend, **options)
        return
    expected = gradients(subject, lambda t: subject.plain(t, **options))
    tensors = subject.leaves()
    y = subject.ours(tensors, backend, **options)
    slope = 2 * y.detach()
    with torch.no_grad():
        tensors[NAMES.index(name)].mul_(-3)
    for result, exact in zip(torch.autograd.grad(y, tensors, slope), expected, strict=True):
        torch.testing.assert_close(result, exact, rtol=1e-4, atol=1e-3)


@with_backends()
@pytest.mark.parametrize("name", ["input", "weight", "gamma"])
def test_what_backward_reads_may_not_be_written_into(subject, backend, name):
    tensors = subject.leaves()
    y = subject.ours(tensors, backend)
    with torch.no_grad():
        tensors[NAMES.index(name)].mul_(-3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@with_backends(keeping=True)
@pytest.mark.parametrize("name", ["bias", "beta"])
def test_a_second_derivative_needs_them_as_they_were(subject, backend, name):
    tensors = subject.leaves()
    y = subject.ours(tensors, backend)
    with torch.no_grad():
        tensors[NAMES.index(name)].mul_(-3)
    with pytest.raises(RuntimeError, match=f"{name}, whose values a second derivative needs, has been modified"):
        torch.autograd.grad(y.square().sum(), tensors, create_graph=True)


@with_backends()
def test_the_output_may_be_written_into(subject, backend):
    """Backward does not read it: something may be added in place."""
    tensors = subject.leaves()
    y = subject.ours(tensors, backend)
    slope = torch.ones_like(y)
    expected = torch.autograd.grad(y, tensors, slope, retain_graph=True)
    y.add_(tensors[4][..., None, None])
    *found, of_beta = torch.autograd.grad(y, tensors, slope)
    torch.testing.assert_close(found, list(expected[:4]))
    torch.testing.assert_close(of_beta, expected[4] + y[0, 0].numel())


@with_backends()
def test_inputs_are_let_go_of_with_the_graph(subject, backend):
    tensors = subject.leaves()
    x = tensors[0].clone()
    gone = weakref.ref(x.untyped_storage())
    y = subject.ours([x, *tensors[1:]], backend)
    del x
    y.sum().backward()
    del y
    gc.collect()
    assert gone() is None
    assert all(t.grad is not None for t in tensors)
