"""`ops.py` serves any operator: here one that is in no file of the package, `y = (gamma * x) ** power + beta`."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from film_kernels import layouts, operators, ops, registered
from film_kernels.arguments import kind_of, remembered
from film_kernels.backends import BACKENDS, base, forget_choices

NAME = "power_film_of_a_test"
TENSORS = ("input", "gamma", "beta")


class PowerFilm(NamedTuple):
    input_shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    channels_last: bool
    power: int

    @property
    def out_shape(self):
        return self.input_shape

    @property
    def tensor_shapes(self):
        return self.input_shape, self.input_shape[:2], self.input_shape[:2]

    @property
    def tensor_dtypes(self):
        return (self.dtype,) * 3

    @property
    def memory_format(self):
        return layouts.memory_format(self.channels_last, len(self.input_shape) - 2)


def problem_of(kinds, channels_last, options):
    (power,) = options
    if power < 1:
        raise ValueError(f"power must be at least 1, got {power}")
    shape, dtype, device, _ = kinds[0]
    return PowerFilm(tuple(shape), dtype, device, channels_last, power)


def plain(problem, input, gamma, beta):
    return (gamma[..., None, None] * input) ** problem.power + beta[..., None, None]


class PowerKernels(base.Kernels):
    """By hand, so that what autograd returns comes from here: it keeps nothing that backward needs."""

    record = PowerFilm

    def __init__(self):
        self.calls = []

    def why_not(self, problem):
        return "it serves powers up to 3" if problem.power > 3 else None

    def kept_like(self, problem):
        return torch.empty(0, dtype=torch.uint8, device=problem.device)

    def reads(self, problem, wanted):
        return (False,)

    def forward(self, problem, tensors, for_backward):
        self.calls.append("forward")
        return plain(problem, *tensors), self.kept_like(problem) if for_backward else None

    def backward(self, problem, grad, kept, tensors, wanted):
        self.calls.append("backward")
        input, gamma, beta = tensors
        assert beta is None or isinstance(beta, torch.Tensor)
        common = grad * problem.power * (gamma[..., None, None] * input) ** (problem.power - 1)
        found = (common * gamma[..., None, None], (common * input).sum((2, 3)), grad.sum((2, 3)))
        return tuple(one if asked else None for one, asked in zip(found, wanted, strict=True))


class PlainKernels(base.Kernels):
    record = PowerFilm
    is_plain = True

    def why_not(self, problem):
        return None


OPERATOR = operators.Operator(
    name=NAME,
    tensors=TENSORS,
    required=3,
    saved=("input", "gamma"),
    parameter="gamma",
    options_schema="int power",
    options_of=tuple,
    writes_channels_last=lambda tensors: layouts.is_channels_last(tensors[0]),
    problem_of=problem_of,
    plain=plain,
)


@pytest.fixture
def kernels(monkeypatch):
    """The operator, served by `vendor` and `reference`; the kernels of `vendor`."""
    mine = PowerKernels()
    monkeypatch.setitem(operators.OPERATORS, PowerFilm, OPERATOR)
    for name, added in (("vendor", mine), ("reference", PlainKernels())):
        backend = BACKENDS[name]
        monkeypatch.setitem(backend._by_record, PowerFilm, added)
    if not hasattr(torch.ops.film_kernels, NAME):
        registered.register(OPERATOR)
    forget_choices()
    yield mine
    forget_choices()


def power_film(input, gamma, beta, power=2, backend=None):
    tensors = (input, gamma, beta)
    channels_last = OPERATOR.writes_channels_last(tensors)
    return ops.call(remembered(problem_of, tuple(map(kind_of, tensors)), channels_last, (power,)), backend, tensors)


def draw():
    torch.manual_seed(0)
    shapes = (2, 3, 4, 5), (2, 3), (2, 3)
    return tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)


def test_it_is_differentiated_by_its_kernels_and_twice_by_its_formula(kernels):
    tensors = draw()
    assert torch.autograd.gradcheck(power_film, tensors)
    assert {"forward", "backward"} == set(kernels.calls)
    assert torch.autograd.gradgradcheck(power_film, tensors)
    y = power_film(*tensors)
    torch.testing.assert_close(y, plain(PowerFilm((), y.dtype, y.device, False, 2), *tensors))
    grads = torch.autograd.grad(y, tensors[1:], torch.ones_like(y))  # a subset
    assert [tuple(grad.shape) for grad in grads] == [(2, 3), (2, 3)]


def test_backends_say_none_or_why_not(kernels):
    tensors = draw()
    with pytest.raises(ValueError, match="'cpu' cannot serve this call: it has no kernels for this operator"):
        power_film(*tensors, backend="cpu")
    with pytest.raises(ValueError, match="'vendor' cannot serve this call: it serves powers up to 3"):
        power_film(*tensors, power=4, backend="vendor")
    kernels.calls.clear()
    power_film(*tensors, power=4).sum().backward()  # goes on to who can
    assert not kernels.calls


def test_the_registered_operators_pass_the_checks_of_torch_library(kernels):
    operator = getattr(torch.ops.film_kernels, NAME).default
    torch.library.opcheck(operator, (*draw(), 2, "", True))
    with pytest.raises(ValueError, match="power must be at least 1"):
        operator(*draw(), 0, "", True)
    with pytest.raises(ValueError, match=r"beta must have shape \(N, K\)"):
        operator(*draw()[:2], torch.randn(3, dtype=torch.float64), 2, "", True)


def test_it_compiles_exports_and_goes_through_torch_func(kernels):
    torch._dynamo.reset()
    tensors = draw()
    expected = power_film(*tensors)
    wanted = torch.autograd.grad(expected.sum(), tensors)
    found = torch.compile(power_film, fullgraph=True)(*tensors)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), tensors), wanted)

    class Layer(torch.nn.Module):
        def forward(self, *given):
            return power_film(*given)

    detached = tuple(tensor.detach() for tensor in tensors)
    exported = torch.export.export(Layer(), detached)
    assert not [node for node in exported.graph.nodes if "film_kernels" in str(node.target)]
    torch.testing.assert_close(exported.module()(*detached), expected.detach())
    gradient = torch.func.grad(lambda gamma: power_film(detached[0], gamma, detached[2]).sum())(detached[1])
    torch.testing.assert_close(gradient, wanted[1])
