"""What lies between forward and backward: hooks that change what was saved, and users who write into arguments."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from film_kernels import conv_film
from tests.helpers.cases import EMULATED, INTERPRETED, Case
from tests.helpers.expected_refusals import assert_refused, words_of_refusal

OURS = ("cpu", "vendor")
SHAPES = {"input": (2, 3, 8, 8), "weight": (16, 3, 3, 3), "bias": (16,), "gamma": (2, 16), "beta": (2, 16)}


def leaves():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in SHAPES.values()]


def plain(x, w, b, gamma, beta, position="post", activation=F.relu):
    z, gamma, beta = F.conv2d(x, w, b, padding=1), gamma[:, :, None, None], beta[:, :, None, None]
    return gamma * activation(z) + beta if position == "post" else activation(gamma * z + beta)


def gradients(call, pack=None, unpack=None):
    tensors = leaves()
    if pack is None:
        y = call(*tensors)
    else:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            y = call(*tensors)
    return torch.autograd.grad(y.square().sum(), tensors)


def ours(backend, **options):
    return lambda *tensors: conv_film(*tensors, padding=1, backend=backend, **options)


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
    def detached(t):
        return pack(t.detach())

    expected = gradients(lambda *t: plain(*t, position))
    lossy = gradients(lambda *t: plain(*t, position), detached, unpack)
    found = gradients(ours(backend, film_position=position), detached, unpack)
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


@pytest.mark.parametrize("backend", [*OURS, *INTERPRETED, *EMULATED], indirect=True)
@pytest.mark.parametrize("place", range(4))
def test_what_comes_back_as_something_else_raises(backend, place):
    """One of what is saved comes back as another tensor: no gradient can be right, and nothing may be read past its
    end."""
    saved = []
    gradients(ours(backend), lambda t: saved.append(t) or t, lambda t: t)
    assert len(saved) == 4
    spoilt = SPOILT_BITS if saved[place].dtype == torch.uint8 else SPOILT_FLOATS
    for name, spoil in spoilt.items():
        numbers = iter(range(99))

        def pack(t, numbers=numbers):
            return next(numbers), t

        def unpack(packed, spoil=spoil):
            return spoil(packed[1]) if packed[0] == place else packed[1]

        with pytest.raises(RuntimeError, match="came back as"):
            pytest.fail(f"{name}: {gradients(ours(backend), pack, unpack)}")


@pytest.mark.parametrize("position", ["post", "pre"])
@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("name", ["bias", "beta"])
def test_bias_and_beta_may_be_written_into_after_forward(backend, name, activation, position):
    """As in plain PyTorch, whose backward reads neither."""
    case = Case("written into", SHAPES["input"], SHAPES["weight"], 1, 1, activation=activation, film_position=position)
    if (words := words_of_refusal(backend, case)) is not None:
        assert_refused(backend, case, leaves(), words)
        return
    expected = gradients(lambda *t: plain(*t, position, getattr(F, activation)))
    tensors = leaves()
    y = ours(backend, activation=activation, film_position=position)(*tensors)
    slope = 2 * y.detach()
    with torch.no_grad():
        tensors[list(SHAPES).index(name)].mul_(-3)
    found = torch.autograd.grad(y, tensors, slope)
    for result, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(result, exact, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["bias", "beta"])
def test_a_second_derivative_needs_them_as_they_were(name):
    tensors = leaves()
    y = ours("cpu")(*tensors)
    with torch.no_grad():
        tensors[list(SHAPES).index(name)].mul_(-3)
    with pytest.raises(RuntimeError, match=f"{name}, whose values a second derivative needs, has been modified"):
        torch.autograd.grad(y.square().sum(), tensors, create_graph=True)
