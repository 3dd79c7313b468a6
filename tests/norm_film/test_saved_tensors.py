"""What lies between forward and backward: memory that is the output's own, and memory that is given back. What else
does is in tests/test_saved_tensors.py, for each operator."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.norm_cases import SERVING, Case, ours, tensors_of
from tests.helpers.spoiling import freed
from tests.helpers.subjects import NAMES


def case_of():
    return Case((2, 6, 5, 7), "group", 2, dtype=torch.float32)


@pytest.mark.parametrize("activation", ["none", "relu", "silu"])
@pytest.mark.parametrize("norm", ["channel", "batch", "group"])
def test_the_output_is_memory_of_its_own(backend, norm, activation):
    """Also where nothing is done to the input: groups of one element, no affine, no FiLM."""
    x = torch.randn(3, 4, 5)
    case = Case((3, 4, 5), norm, 4 if norm == "group" else None, activation, dtype=torch.float32)
    with torch.no_grad():
        y = ours(case, [x, None, None, None, None], backend)
    assert y.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", [name for name in SERVING if name == "cpu"], indirect=True)
def test_a_freed_tensor_is_not_an_absent_one(backend, name):
    case = case_of()
    tensors = tensors_of(case)
    tensors[NAMES.index(name)] = freed(tensors[NAMES.index(name)])
    with pytest.raises(RuntimeError, match=f"storage of {name} has 0 bytes"):
        ours(case, tensors, backend)


@pytest.mark.parametrize("name", ["input", "weight", "bias", "gamma", "beta", "kept", "grad"])
@pytest.mark.parametrize("backend", [name for name in SERVING if name == "cpu"], indirect=True)
def test_a_tensor_freed_before_backward(backend, name):
    case = case_of()
    tensors = [t.requires_grad_().clone() for t in tensors_of(case)]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = ours(case, tensors, backend)
    grad = torch.ones_like(y)
    kept = next(t for t in saved if all(t is not other for other in tensors))
    of_name = dict(zip((*NAMES, "kept", "grad"), (*tensors, kept, grad), strict=True))
    of_name[name].untyped_storage().resize_(0)
    if name in ("bias", "beta"):  # which backward reads copies of
        y.backward(grad)
        return
    with pytest.raises(RuntimeError, match=r"storage of (\w+) has 0 bytes"):
        y.backward(grad)
