"""What `vendor` does around the library's convolution on CPUs: one pass by the compiled library, or PyTorch's own
operations where it is not here."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from film_kernels.activations import ACTIVATIONS
from film_kernels.backends import BACKENDS, cpu_library, cpu_pass, vendor
from film_kernels.problems.conv_film import KEEPS
from tests.helpers.cases import Case, assert_as_good_as_plain, problem_of, run, tensors_of

pytestmark = pytest.mark.usefixtures("one_thread")
GEOMETRIES = (
    Case("wide", (2, 16, 9, 10), (32, 16, 3, 3), padding=1),
    Case("depthwise", (2, 6, 10, 10), (6, 1, 3, 3), 2, 1, groups=6, gamma_offset=1.0),
    Case("one_dimension", (3, 6, 50), (9, 6, 5), padding=4),
    Case("three_dimensions", (2, 3, 5, 7, 6), (4, 3, 3, 3, 3)),
)
CASES = [
    replace(case, activation=name, film_position=position, keep=KEEPS[(i + j) % 3])
    for i, case in enumerate(GEOMETRIES)
    for j, name in enumerate(ACTIVATIONS)
    for position in ("post", "pre")[: 1 if name == "none" else 2]
]


@pytest.fixture(params=[True, False], ids=["compiled", "pytorch"])
def compiled(request, monkeypatch):
    """Whether the compiled library is here; the passes that it made."""
    assert cpu_library.unavailable() is None  # which loads it
    monkeypatch.setattr(vendor, "has_compiled_pass", lambda problem: request.param)
    made = []
    for name in ("forward", "backward"):
        real = getattr(cpu_pass, name)
        monkeypatch.setattr(cpu_pass, name, lambda *given, name=name, real=real: made.append(name) or real(*given))
    yield request.param, made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_and_gradients(case, dtype, compiled):
    assert_as_good_as_plain(case, lambda seed: tensors_of(case, dtype, seed), "vendor", draws=6)
    is_here, made = compiled
    # In float32 PyTorch's own operations are as fast that write over z, or are a single one, and compute no function.
    linear = dtype == torch.float32 and ACTIVATIONS[case.activation].one_bit
    as_fast = linear and (case.keep != "fast" or case.activation == "none")
    assert set(made) == ({"backward"} if as_fast else {"forward", "backward"}) if is_here else not made


@pytest.mark.parametrize("absent", [(2,), (3,), (4,), (3, 4), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("name", ["none", "relu", "gelu"])
def test_absent_bias_gamma_and_beta(absent, name, compiled):
    case = Case("absent", (2, 5, 9, 8), (6, 5, 3, 3), activation=name)

    def draw(seed):
        return [None if i in absent else t for i, t in enumerate(tensors_of(case, torch.float32, seed))]

    assert_as_good_as_plain(case, draw, "vendor")


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("case", CASES[::5], ids=str)
def test_layouts_and_kept_tensors(case, channels_last, compiled):
    tensors = tensors_of(case, torch.float32)
    if channels_last:
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        tensors[:2] = [t.to(memory_format=formats.get(t.dim(), torch.contiguous_format)) for t in tensors[:2]]
    problem = problem_of(case, tensors)
    kernels = BACKENDS["vendor"].of(problem)
    y, kept = kernels.forward(problem, tensors, True)
    like = kernels.kept_like(problem)
    assert (kept.shape, kept.dtype, kept.stride()) == (like.shape, like.dtype, like.stride())
    assert y.is_contiguous(memory_format=problem.memory_format) and y.data_ptr() != kept.data_ptr()
    grad = torch.randn(y.shape)
    expected = run(case, tensors, grad, "reference", torch.float32)
    for found, other in zip(run(case, tensors, grad, "vendor", torch.float32), expected, strict=True):
        torch.testing.assert_close(found, other, rtol=1e-4, atol=1e-4)


def test_the_compiled_library_serves_its_dtypes_on_the_cpu():
    problem = problem_of(GEOMETRIES[0], tensors_of(GEOMETRIES[0], torch.float32))
    assert vendor.has_compiled_pass(problem)
    assert not vendor.has_compiled_pass(problem._replace(device=torch.device("meta")))
    assert not vendor.has_compiled_pass(problem._replace(dtype=torch.complex64))
