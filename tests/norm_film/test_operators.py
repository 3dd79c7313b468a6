"""The registered operators: torch.library's own checks, and calls by anybody with anything: they answer or raise, and
what they raise names the argument."""

from __future__ import annotations

import re

import pytest
import torch

from tests.helpers.door_calls import freed
from tests.helpers.norm_cases import SERVING, Case, gradients, ours, plain, tensors_of
from tests.helpers.subprocesses import run_python

KEEPING = [name for name in SERVING if name != "reference"]
NORMS = (
    ("group", 2, 1),
    ("batch", None, 1),
    ("channel", None, -1),
    ("rms", None, 1),
    ("l2", None, -1),
    ("none", None, 1),
)
NAMES = ("input", "weight", "bias", "gamma", "beta")
OPTIONS = (
    "norm", "num_groups", "eps", "activation", "negative_slope", "film_position", "gamma_offset", "channel_dim",
    "backend",
)  # fmt: skip


def options_of(case, backend):
    return (
        case.norm, case.num_groups, case.eps, case.activation, 0.1, case.film_position, case.gamma_offset,
        case.channel_dim, backend,
    )  # fmt: skip


@pytest.mark.parametrize("backend", KEEPING, indirect=True)
@pytest.mark.parametrize(
    ("norm", "position", "shape"),
    [
        *((norm, ("pre", "post")[at % 2], (2, 4, 5, 6)) for at, norm in enumerate(NORMS)),
        *((norm, position, (3, 4)) for norm in (NORMS[0], NORMS[-1]) for position in ("pre", "post")),
    ],
    ids=str,
)
def test_opcheck_of_the_registered_operators(backend, norm, position, shape):
    kind, groups, dim = norm
    channels_last = len(shape) == 4 and dim == 1
    case = Case(
        shape, kind, groups, "none" if len(shape) == 2 else "silu", position, channel_dim=dim, eps=0.1,
        layout="channels_innermost" if channels_last else "contiguous",
    )  # fmt: skip
    tensors, options = tensors_of(case), options_of(case, backend)
    leaves = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors]
    torch.library.opcheck(torch.ops.film_kernels.norm_film.default, (*leaves, *options, True))
    y, kept = torch.ops.film_kernels.norm_film(*tensors, *options, True)
    traced = ("test_aot_dispatch_dynamic",) if kind in ("group", "rms") else ()  # which takes longest by far
    for wanted in ([True] * 5, [True, False, False, True, False]):
        torch.library.opcheck(
            torch.ops.film_kernels.norm_film_backward.default,
            (torch.randn_like(y), kept, *tensors, *options, wanted),
            test_utils=("test_schema", "test_faketensor", *traced),
        )


def _arguments(backend="cpu", **changed):
    case = Case((2, 4, 5, 6), "group", 2, dtype=torch.float32)
    given = dict(zip(NAMES, tensors_of(case), strict=True)) | dict(zip(OPTIONS, options_of(case, backend), strict=True))
    return {**given, **changed}


BAD_CALLS = [
    ("norm", {"norm": "layer"}),
    ("norm", {"norm": ""}),
    ("num_groups", {"num_groups": None}),
    ("num_groups", {"num_groups": 0}),
    ("num_groups", {"num_groups": -2}),
    ("num_groups", {"num_groups": 3}),
    ("num_groups", {"num_groups": 2**40}),
    ("num_groups", {"norm": "batch"}),
    ("eps", {"eps": -1e-9}),
    ("eps", {"eps": float("nan")}),
    ("eps", {"eps": float("inf")}),
    ("activation", {"activation": "swish"}),
    ("film_position", {"film_position": "middle"}),
    ("negative_slope", {"negative_slope": float("nan")}),
    ("gamma_offset", {"gamma_offset": float("inf")}),
    ("channel_dim", {"channel_dim": -1}),
    ("channel_dim", {"channel_dim": 2}),
    ("channel_dim", {"channel_dim": 2**62}),
    ("backend", {"backend": "gpu"}),
    ("input", {"input": torch.randn(4)}),
    ("input", {"input": torch.randn(2, 4, 1, 1, 1, 1)}),
    ("input", {"input": torch.ones(2, 4, 5, 6, dtype=torch.int32)}),
    ("input", {"input": torch.randn(2, 4, 5, 6).to_sparse()}),
    ("input", {"input": torch.randn(2, 0, 5, 6), "weight": None, "bias": None, "gamma": None, "beta": None}),
    ("weight", {"weight": torch.randn(5)}),
    ("weight", {"weight": torch.randn(4, 1)}),
    ("weight", {"weight": torch.randn(4).double()}),
    ("weight", {"weight": torch.randn(4).to("meta")}),
    ("bias", {"bias": torch.randn(3)}),
    ("bias", {"bias": torch.randn(4).half()}),
    ("gamma", {"gamma": torch.randn(4)}),
    ("gamma", {"gamma": torch.randn(1, 4)}),
    ("gamma", {"gamma": torch.randn(2, 4).bfloat16()}),
    ("beta", {"beta": torch.randn(2, 4, 1, 1)}),
]


@pytest.mark.parametrize(("name", "changed"), BAD_CALLS)
def test_the_registered_operator_checks_what_it_is_given(name, changed):
    torch.ops.film_kernels.norm_film(**_arguments(), keep=True)
    with pytest.raises((ValueError, TypeError), match=f"^{name}"):
        torch.ops.film_kernels.norm_film(**_arguments(**changed), keep=True)


def _spoilt(tensor):
    yield tensor[:-1]
    yield tensor[..., :-1]
    yield tensor.unsqueeze(0)
    yield tensor.new_empty(0)
    yield tensor.to("meta")
    yield tensor.to(torch.complex64)
    yield torch.cat([tensor, tensor])
    yield None


@pytest.mark.parametrize("position", ["post", "pre"])
def test_the_registered_backward_checks_what_it_is_given(backend, position):
    arguments = _arguments(backend, film_position=position)
    y, kept = torch.ops.film_kernels.norm_film(**arguments, keep=True)
    backward, grad = torch.ops.film_kernels.norm_film_backward, torch.randn_like(y)
    case = Case((2, 4, 5, 6), "group", 2, film_position=position, dtype=torch.float32)
    expected = gradients(lambda leaves: plain(case, leaves), [arguments[name] for name in NAMES], grad)[1:]
    for result, exact in zip(backward(grad, kept, **arguments, wanted=[True] * 5), expected, strict=True):
        torch.testing.assert_close(result, exact, rtol=1e-4, atol=1e-4)
    for wanted in ([], [True] * 4, [True] * 6):
        with pytest.raises(ValueError, match=r"^wanted must have 5 values"):
            backward(grad, kept, **arguments, wanted=wanted)
    for bad in (*_spoilt(grad), grad.double(), grad.to(torch.uint8)):
        with pytest.raises(ValueError, match=r"^grad must be"):
            backward(bad, kept, **arguments, wanted=[True] * 5)
    if backend != "reference":
        for bad in (*_spoilt(kept), kept.double(), kept.half()):
            with pytest.raises((RuntimeError, ValueError), match=r"^kept"):
                backward(grad, bad, **arguments, wanted=[True] * 5)
    with pytest.raises(ValueError, match=r"^num_groups"):
        backward(grad, kept, **{**arguments, "num_groups": 0}, wanted=[True] * 5)
    # a gradient of what is not there is an empty tensor
    arguments["bias"] = arguments["beta"] = None
    y, kept = torch.ops.film_kernels.norm_film(**arguments, keep=True)
    assert [t.numel() for t in backward(grad, kept, **arguments, wanted=[False, False, True, True, True])] == [
        0, 0, 0, 8, 0,
    ]  # fmt: skip


@pytest.mark.parametrize("backend", KEEPING, indirect=True)
def test_eager_and_operator_are_the_same_bits(backend):
    case = Case((2, 4, 5, 6), "group", 2, dtype=torch.float32)
    tensors = [t.requires_grad_() for t in tensors_of(case)]
    eager = ours(case, tensors, backend)
    operator, _ = torch.ops.film_kernels.norm_film(*tensors, *options_of(case, backend), True)
    assert torch.equal(eager, operator)
    grad = torch.randn_like(eager)
    for a, b in zip(
        torch.autograd.grad(eager, tensors, grad), torch.autograd.grad(operator, tensors, grad), strict=True
    ):
        assert torch.equal(a, b)
    assert eager.grad_fn.name() == "_NormFilmBackward"


# ---- the operators of the CPU library ----


def right_calls(*args, **options):
    from .hostile import right_calls

    return right_calls(*args, **options)


@pytest.mark.parametrize("name", ["norm_forward", "norm_backward"])
def test_tensors_are_checked(name):
    operator, arguments = right_calls((2, 4, 5, 6))[name]
    operator(**arguments)
    for argument, tensor in arguments.items():
        if not isinstance(tensor, torch.Tensor):
            continue
        for wrong in (
            tensor.double(), tensor.half(), tensor[:-1], torch.cat([tensor, tensor]), tensor.unsqueeze(0),
            tensor.flatten()[:1], tensor.new_empty([0] * tensor.dim()), freed(tensor),
            freed(tensor, tensor.numel() * tensor.element_size() - 1),
        ):  # fmt: skip
            if argument == "input" and name == "norm_forward" and wrong.dtype != torch.float32:
                continue  # then all the others are blamed
            with pytest.raises(RuntimeError, match=r"film_kernels: .*(input|weight|bias|gamma|beta|grad|statistics)"):
                operator(**{**arguments, argument: wrong})


@pytest.mark.parametrize("name", ["norm_forward", "norm_backward"])
def test_options_are_checked(name):
    operator, arguments = right_calls((2, 4, 5, 6))[name]
    geometry, numbers = arguments["geometry"], arguments["numbers"]
    for place, values, words in (
        (0, (-1, 6, 2**40, -(2**63)), "norm"),
        (1, (0, -1, 3, 2**62), "groups"),
        (2, (-1, 0, 2, -(2**63)), "channel_dim"),
        (3, (-1, 9, 2**40), "activation"),
        (4, (-1, 2, 2**40), "position"),
    ):
        for value in values:
            wrong = [*geometry[:place], value, *geometry[place + 1 :]]
            with pytest.raises(RuntimeError, match=f"film_kernels: .*{words}"):
                operator(**{**arguments, "geometry": wrong})
    for wrong in ([], geometry[:-1], [*geometry, 0]):
        with pytest.raises(RuntimeError, match=r"geometry .*5 integers"):
            operator(**{**arguments, "geometry": wrong})
    for place, words in enumerate(("eps", "lower_slope", "gamma_offset")):
        for value in (float("nan"), float("inf")):
            with pytest.raises(RuntimeError, match=f"film_kernels: .*{words} .*finite"):
                operator(**{**arguments, "numbers": [*numbers[:place], value, *numbers[place + 1 :]]})
    for wrong in ([], numbers[:-1], [*numbers, 0.0]):
        with pytest.raises(RuntimeError, match=r"numbers .*3 numbers"):
            operator(**{**arguments, "numbers": wrong})


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("norm", ["group", "batch", "channel", "l2"])
def test_opcheck_of_the_compiled_kernels(norm, channels_last):
    for operator, arguments in list(right_calls((2, 4, 5, 6), norm, channels_last=channels_last).values())[:2]:
        torch.library.opcheck(operator.default, (), arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", ["norm_forward", "norm_backward"])
def test_fakes_refuse_too(name):
    with torch.device("meta"):
        operator, arguments = right_calls((2, 4, 5, 6))[name]
    operator(**arguments)
    for argument, tensor in arguments.items():
        if isinstance(tensor, torch.Tensor) and argument != "statistics":
            with pytest.raises(RuntimeError, match=r"film_kernels: .* must have"):
                operator(**{**arguments, argument: torch.cat([tensor, tensor])})


def test_no_call_ends_the_process():
    """In a process of its own, with a limit of memory: thousands of calls, most of them spoiled in one way or more."""
    done = run_python("-W", "ignore", "-m", "tests.norm_film.hostile", "0", "2500")
    assert done.returncode == 0, done.stderr[-2000:]
    answered, raised = map(int, re.findall(r"\d+", done.stdout))
    assert answered > 500 and raised > 500
