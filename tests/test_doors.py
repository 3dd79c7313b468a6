"""The compiled libraries' registered operators can be called by anybody with anything: they answer or raise, and what
they raise names the argument."""

from __future__ import annotations

import os
import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

import film_kernels
from film_kernels.activations import ACTIVATIONS
from tests.helpers.door_calls import OF_EVERY_LIBRARY, OPERATORS, call, calls, hostile_calls
from tests.helpers.spoiling import freed
from tests.helpers.subprocesses import run_python
from tests.norm_film.hostile import right_calls as right_norm_calls

INPUT, WEIGHT = (2, 4, 7, 8), (10, 4, 3, 3)
ARGUMENTS = ("input", "weight", "bias", "gamma", "beta")


@pytest.fixture(params=["cpu", "cuda", "cuda_matrix"])
def library(request, one_thread):
    """The operators of one library, and what makes a right call of each, for both kinds of CUDA kernels."""
    if request.param == "cpu":
        assert film_kernels.available_backends()["cpu"] is None
        return torch.ops.film_kernels_cpu, lambda **options: calls(INPUT, WEIGHT, **options)
    request.getfixturevalue("emulator")
    assert film_kernels.available_backends()["cuda"] is None
    if request.param == "cuda":
        return torch.ops.film_kernels_cuda, lambda **options: calls(INPUT, WEIGHT, matrix=False, **options)
    last = {"channels_last": True, "matrix": True}
    return torch.ops.film_kernels_cuda, lambda **options: calls((2, 8, 7, 8), (16, 8, 3, 3), **last, **options)


def right_call(library, operator):
    operators, right = library
    if not hasattr(operators, operator):
        pytest.skip("the CPU library's alone")
    return right()[operator]


def refused(operators, operator, arguments, name, words=""):
    with pytest.raises(RuntimeError, match=rf"film_kernels: [^,:]*\b{name}\b.*{words}"):
        call(operators, operator, arguments)


@pytest.mark.parametrize("operator", OPERATORS)
def test_tensors_are_checked(library, operator):
    operators, arguments = library[0], right_call(library, operator)
    call(operators, operator, arguments)
    for name, tensor in arguments.items():
        if not isinstance(tensor, torch.Tensor):
            continue
        other = torch.int32 if name == "bits" else torch.float64
        for wrong, words in (
            (tensor.to(other), "dtype"),
            (tensor[:-1], ""),
            (torch.cat([tensor, tensor]), ""),
            (tensor.unsqueeze(0), ""),
            (tensor.flatten()[:1], ""),
            (tensor.new_empty([0] * tensor.dim()), ""),
            (freed(tensor), "freed or resized"),
            (freed(tensor, tensor.numel() * tensor.element_size() - 1), "freed or resized"),
        ):
            # of those that have to agree with one another, it cannot be told which one is wrong
            agreeing = name in ("input", "weight", "grad") and "resized" not in words
            blamed = "(input|weight|grad|bias|gamma|beta|bits|geometry)" if agreeing else name
            refused(operators, operator, {**arguments, name: wrong}, blamed, words)


@pytest.mark.parametrize("operator", OPERATORS)
def test_geometry_is_checked(library, operator):
    operators, arguments = library[0], right_call(library, operator)
    geometry = arguments["geometry"]
    # The CPU's forward serves smooth activations too, of which backward has a pass of its own.
    smooth = operators is torch.ops.film_kernels_cpu and operator.startswith("forward")
    for places, values, words in (
        ((0, 4), (0, -1, -(2**63)), "stride"),
        ((1, 5), (0, -1, -(2**63)), "dilation"),
        ((2, 6), (-1, -(2**63)), "padding"),
        ((3, 7), (-1, 1, -(2**63)), "output size"),
        ((8,), (0, -1, 3, 2**62), "groups"),
        ((9,), (-1, len(ACTIVATIONS) if smooth else 3, 2**40), "activation"),
        ((10,), (-1, 2, 2**40), "position"),
        ((0, 1, 2, 4, 5, 6), (2**62, 2**63 - 1), ""),
    ):
        for place in places:
            for value in values:
                wrong = [*geometry[:place], value, *geometry[place + 1 :]]
                refused(operators, operator, {**arguments, "geometry": wrong}, "(geometry|input|grad)", words)
    for wrong in ([], geometry[:-1], [*geometry, 0]):
        refused(operators, operator, {**arguments, "geometry": wrong}, "geometry", "11 integers")
    numbers = arguments["numbers"]
    for place, name in enumerate(("lower_slope", "gamma_offset")):
        for value in (float("nan"), float("inf")):
            wrong = [*numbers[:place], value, *numbers[place + 1 :]]
            refused(operators, operator, {**arguments, "numbers": wrong}, name, "finite")
    for wrong in ([], numbers[:-1], [*numbers, 0.0]):
        refused(operators, operator, {**arguments, "numbers": wrong}, "numbers", "2 numbers")


def test_input_size_is_checked(library):
    operators, right = library
    arguments = right()["grad_input"]
    n, c, h, w = arguments["input_size"]
    for wrong in ([], [n, c, h], [n, c, h, w, 1], [n, c + 1, h, w], [n + 1, c, h, w], [n, c, h, -1], [n, c, 2**62, w]):
        refused(
            operators, "grad_input", {**arguments, "input_size": wrong}, "(input_size|input|geometry|grad|gamma|bits)"
        )


@pytest.mark.parametrize("operator", ["grad_weight", "backward"])
@pytest.mark.parametrize("name", ["gamma", "beta"])
def test_sizes_of_factors_are_checked(operator, name):
    arguments = calls(INPUT, WEIGHT)[operator]
    place = ARGUMENTS.index(name) - len(ARGUMENTS)  # of its gradient
    for size in ([2, 10], [2, 10, 1], [2, 10, 1, 1, 1], [2, 1, 1, 10], []):
        found = call(torch.ops.film_kernels_cpu, operator, {**arguments, f"{name}_size": size})[place]
        assert list(found.shape) == (size or [2, 10]) and found.is_contiguous()
    for size in ([20], [10, 2], [1, 10], [2, 5, 2], [2, 10, 2], [2, 10, 1, 1, 1, 1], [-2, -10], [2, 2**62], [2, 10, 0]):
        refused(torch.ops.film_kernels_cpu, operator, {**arguments, f"{name}_size": size}, f"{name}_size")


@pytest.mark.parametrize("operator", [*OPERATORS, "norm_forward", "norm_forward_and_copy", "norm_backward"])
def test_whoever_traces_may_give_the_factors_that_kernels_take(operator):
    if operator.startswith("norm"):
        arguments = right_norm_calls((2, 10, 5, 6))[operator][1]
    else:
        arguments = calls(INPUT, WEIGHT)[operator]
    taken = []
    for name in {"gamma", "beta"} & arguments.keys():
        for shape in ((2, 10), (2, 10, 1), (2, 10, 1, 1), (2, 1, 1, 10), (1, 10, 1, 1), (1, 10), (2, 1, 10, 1),
                      (2, 10, 2, 1), (10,), (10, 1, 1), (3, 10, 1, 1), (2, 5, 2, 1), (2, 10, 1, 0), ()):  # fmt: skip
            given = {**arguments, name: torch.randn(shape)}
            found = [takes(operator, given)]
            with FakeTensorMode() as mode:
                found.append(takes(operator, tree_map_only(torch.Tensor, mode.from_tensor, given)))
            assert found[0] == found[1], (name, shape)
            taken.append(found[0])
    assert {True, False} == set(taken)


def takes(operator, arguments):
    """Whether the CPU library's operator answers."""
    try:
        call(torch.ops.film_kernels_cpu, operator, arguments)
    except RuntimeError:
        return False
    return True


def test_copies_are_those_that_are_asked_for():
    arguments = calls(INPUT, WEIGHT)["forward_and_copy"]
    for bias, beta in ((True, True), (True, False), (False, True)):
        asked = {**arguments, "copy_bias": bias, "copy_beta": beta}
        *_, of_bias, of_beta = call(torch.ops.film_kernels_cpu, "forward_and_copy", asked)
        for copied, name, copy in ((bias, "bias", of_bias), (beta, "beta", of_beta)):
            assert torch.equal(copy, arguments[name]) if copied else copy.numel() == 0
            assert copy.data_ptr() != arguments[name].data_ptr()


def test_what_only_some_kernels_serve(emulator):
    assert film_kernels.available_backends()["cuda"] is None
    operators = torch.ops.film_kernels_cuda
    last = {"channels_last": True, "matrix": True}
    for (shape, weight, options), words in (
        (((2, 17, 7, 8), (10, 17, 3, 3), {"matrix": False}), "at most 16 channels"),
        ((INPUT, (10, 2, 3, 3), {"matrix": False, "groups": 2}), "groups must be 1"),
        ((INPUT, WEIGHT, {"matrix": False, "dtype": torch.float64}), "float32, bfloat16 or float16"),
        (((2, 8, 7, 8), (12, 8, 3, 3), {**last, "dtype": torch.float16}), "multiples of 8 channels"),
        (((2, 8, 7, 8), (16, 8, 3, 3), {"matrix": True, "channels_last": False}), "must be channels_last"),
    ):
        for operator in OF_EVERY_LIBRARY:
            with pytest.raises(RuntimeError, match=words):
                call(operators, operator, calls(shape, weight, **options)[operator])


@pytest.mark.parametrize("operator", OPERATORS)
def test_any_view_is_legal(library, operator):
    """Strides of 0 or more, negative views and gaps give what the dense tensor gives; so do bits."""
    operators, arguments = library[0], right_call(library, operator)
    expected = call(operators, operator, arguments)
    matrix = arguments.get("matrix", False)
    for name, tensor in arguments.items():
        if not isinstance(tensor, torch.Tensor) or (matrix and name not in ("bits", "beta", "bias")):
            continue
        spread = torch.empty([size * 2 for size in tensor.shape], dtype=tensor.dtype)[
            (slice(None, None, 2),) * tensor.dim()
        ]
        views = [spread.copy_(tensor), tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor]
        if tensor.is_floating_point():
            views.append(torch._neg_view(-tensor))
            views.append(torch.view_as_real(torch.complex(tensor.float(), tensor.float())).to(tensor.dtype)[..., 0])
        for view in views:
            found = call(operators, operator, {**arguments, name: view})
            for one, other in zip(found, expected, strict=True) if operator != "grad_input" else [(found, expected)]:
                torch.testing.assert_close(one, other)
        if not matrix:
            row = tensor[:1].expand(tensor.shape)
            found, dense = (call(operators, operator, {**arguments, name: t}) for t in (row, row.contiguous()))
            for one, other in zip(found, dense, strict=True) if operator != "grad_input" else [(found, dense)]:
                torch.testing.assert_close(one, other)


def test_tensors_of_other_kinds_are_refused():
    operators = torch.ops.film_kernels_cpu
    for operator in OPERATORS:
        arguments = calls(INPUT, WEIGHT)[operator]
        for name in ("weight", "gamma"):
            dense = arguments[name]
            for other in (dense.to_sparse(), dense.to_mkldnn(), torch.nested.nested_tensor([dense[0], dense[1]])):
                with pytest.raises((RuntimeError, NotImplementedError)):
                    call(operators, operator, {**arguments, name: other})
        with pytest.raises(RuntimeError, match="weight must be a tensor, got None"):
            call(operators, operator, {**arguments, "weight": None})


def test_fakes_refuse_too():
    with torch.device("meta"):
        right = calls(INPUT, WEIGHT)
    for operator, arguments in right.items():
        call(torch.ops.film_kernels_cpu, operator, arguments)
        for name, tensor in arguments.items():
            if isinstance(tensor, torch.Tensor):
                wrong = {**arguments, name: torch.cat([tensor, tensor])}
                if name == "weight" and operator.startswith("forward"):
                    wrong["bias"] = None
                with pytest.raises(RuntimeError, match=r"film_kernels: .* must have shape"):
                    call(torch.ops.film_kernels_cpu, operator, wrong)


@pytest.mark.parametrize("seed", range(2))
def test_no_call_ends_the_process(seed):
    """In a process of its own, with a limit of memory: thousands of calls, most of them spoiled in one way or more."""
    done = run_python("-m", "tests.helpers.door_calls", "film_kernels_cpu", str(seed), "1500")
    assert done.returncode == 0, done.stderr[-2000:]
    answered, raised = map(int, re.findall(r"\d+", done.stdout))
    assert answered > 300 and raised > 300


def test_no_call_of_the_emulated_kernels_ends_the_process(emulator, one_thread):
    assert film_kernels.available_backends()["cuda"] is None
    answered, raised = hostile_calls("film_kernels_cuda", 0, 150)
    assert answered > 30 and raised > 30


# ---- freed storage, through the front door ----


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_freed_tensor_is_not_an_absent_one(name):
    shapes = dict(zip(ARGUMENTS, (INPUT, WEIGHT, (10,), (2, 10), (2, 10)), strict=True))
    tensors = {n: torch.randn(shape) for n, shape in shapes.items()}
    with pytest.raises(RuntimeError, match=f"storage of {name} has 0 bytes"):
        film_kernels.conv_film(**{**tensors, name: freed(tensors[name])}, backend="cpu")


@pytest.mark.parametrize("name", ["input", "weight", "bias", "gamma", "beta", "bits", "grad"])
def test_a_tensor_freed_before_backward(name):
    shapes = dict(zip(ARGUMENTS, (INPUT, WEIGHT, (10,), (2, 10), (2, 10)), strict=True))
    tensors = {n: torch.randn(shape).requires_grad_().clone() for n, shape in shapes.items()}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = film_kernels.conv_film(**tensors, backend="cpu")
    grad = torch.ones_like(y)
    tensors |= {"bits": next(t for t in kept if t.dtype == torch.uint8), "grad": grad}
    tensors[name].untyped_storage().resize_(0)
    if name in ("bias", "beta"):  # backward reads neither, as in plain PyTorch
        y.backward(grad)
        return
    with pytest.raises(RuntimeError, match=f"storage of {name} has 0 bytes"):
        y.backward(grad)


def test_empty_tensors_have_no_memory_and_are_given():
    x, w, b, factor = torch.randn(0, 4, 7, 8), torch.randn(WEIGHT), torch.randn(10), torch.randn(0, 10)
    tensors = [t.requires_grad_() for t in (x, w, b, factor, factor.detach().clone())]
    y = film_kernels.conv_film(*tensors, backend="cpu")
    assert y.shape == (0, 10, 5, 6)
    for gradient, tensor in zip(torch.autograd.grad(y.sum(), tensors), tensors, strict=True):
        assert gradient.shape == tensor.shape and not gradient.any()


# ---- errors that come from below ----

MEMORY = """
import resource, torch, film_kernels
torch.set_num_threads({threads})
film_kernels.available_backends()
resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))
x, w = torch.ones(1, 1, 1, 1).expand({input}), torch.ones({weight})
try:
    torch.ops.film_kernels_cpu.forward(x, w, None, None, None, {geometry}, [0.0, 0.0], False)
except RuntimeError as error:
    print(error)
"""


@pytest.mark.skipif("FILM_KERNELS_SANITIZED" in os.environ, reason="a sanitizer takes terabytes of addresses itself")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("input", "weight", "geometry", "words"),
    [
        (
            (2**20, 4, 64, 64),
            (64, 4, 1, 1),
            [1, 1, 0, 64, 1, 1, 0, 64, 1, 1, 0],
            r"could not allocate 1099511627776 bytes",
        ),
        ((2**12, 4, 8, 8), (4, 4, 1, 2), [1, 1, 0, 8, 1, 2**32, 0, 4, 1, 1, 0], r"could not allocate \d+ bytes"),
    ],
    ids=["output", "scratch"],
)
def test_memory_that_runs_out_is_said_to(input, weight, geometry, words, threads):
    script = MEMORY.format(input=input, weight=weight, geometry=geometry, threads=threads)
    done = run_python("-c", script)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(words, done.stdout) and "API call failed" not in done.stdout, done.stdout


INSTRUCTIONS = """
import torch, film_kernels
from film_kernels import __main__
x, w = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3)
print(film_kernels.available_backends()["cpu"])
__main__.main([])
for call in (
    lambda: film_kernels.conv_film(x, w),
    lambda: film_kernels.conv_film(x, w, backend="cpu"),
    lambda: torch.ops.film_kernels_cpu.forward(
        x, w, None, None, None, [1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0], [0.0, 0.0], False
    ),
):
    try:
        call()
    except (ValueError, RuntimeError) as error:
        print(type(error).__name__, error)
print(film_kernels.conv_film(x, w, backend="vendor").item())
"""


def test_instructions_that_are_not_here_are_an_error():
    done = run_python("-c", INSTRUCTIONS, FILM_KERNELS_CPU_ISA="foo", COLUMNS="120")
    assert done.returncode == 0, done.stderr
    words = r"FILM_KERNELS_CPU_ISA must be one of .*baseline, got foo\n"
    errors = f"ValueError {words}ValueError backend 'cpu' cannot serve this call: {words}RuntimeError .*{words}"
    assert re.fullmatch(f"{words}(.|\n)*cpu +{words}(.|\n)*{errors}9.0\n", done.stdout), done.stdout
