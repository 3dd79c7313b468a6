"""norm_film's operators: torch.library's own checks, and those of the CPU library called by anybody with anything: they
answer or raise, and what they raise names the argument."""

from __future__ import annotations

import re

import pytest
import torch

from tests.helpers.norm_cases import SERVING, Case, tensors_of
from tests.helpers.spoiling import freed
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


# ---- the operators of the CPU library ----


def right_calls(*args, **options):
    from .hostile import right_calls

    return right_calls(*args, **options)


@pytest.mark.parametrize("name", ["norm_forward", "norm_backward", "norm_forward_and_copy"])
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
            if argument == "input" and name.startswith("norm_forward") and wrong.dtype != torch.float32:
                continue  # then all the others are blamed
            with pytest.raises(RuntimeError, match=r"film_kernels: .*(input|weight|bias|gamma|beta|grad|statistics)"):
                operator(**{**arguments, argument: wrong})


@pytest.mark.parametrize("name", ["norm_forward", "norm_backward", "norm_forward_and_copy"])
def test_options_are_checked(name):
    operator, arguments = right_calls((2, 4, 5, 6))[name]
    geometry, numbers = arguments["geometry"], arguments["numbers"]
    for place, values, words in (
        (0, (-1, 6, 2**40, -(2**63)), "norm"),
        (1, (0, -1, 3, 2**62), "groups"),
        (2, (-1, 0, 2, -(2**63)), "channel_dim"),
        (3, (-1, 10, 2**40), "activation"),
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


@pytest.mark.parametrize("name", ["gamma", "beta"])
def test_sizes_of_factors_are_checked(name):
    operator, arguments = right_calls((2, 4, 5, 6))["norm_backward"]
    for size in ([], [2, 4], [2, 4, 1, 1], [2, 1, 1, 4]):
        found = operator(**{**arguments, f"{name}_size": size})[["gamma", "beta"].index(name) - 2]
        assert list(found.shape) == (size or [2, 4])
    for size in ([8], [4, 2], [2, 2, 2], [2, 4, 2], [1, 4], [-2, -4], [2, 4, 1, 1, 1, 1], [2, 2**62]):
        with pytest.raises(RuntimeError, match=f"film_kernels: {name}_size must"):
            operator(**{**arguments, f"{name}_size": size})


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("norm", ["group", "batch", "channel", "l2"])
def test_opcheck_of_the_compiled_kernels(norm, channels_last):
    calls = right_calls((2, 4, 5, 6), norm, channels_last=channels_last)
    for name in ("norm_forward", "norm_backward", "norm_forward_and_copy"):
        operator, arguments = calls[name]
        torch.library.opcheck(operator.default, (), arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", ["norm_forward", "norm_backward", "norm_forward_and_copy"])
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
    done = run_python("-W", "ignore", "-m", "tests.norm_film.hostile", "0", "2500", "cpu")
    assert done.returncode == 0, done.stderr[-2000:]
    answered, raised = map(int, re.findall(r"\d+", done.stdout))
    assert answered > 500 and raised > 500
