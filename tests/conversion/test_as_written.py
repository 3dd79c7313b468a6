"""FiLM among what models write around it: what is listed, what is fused, and that nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch

from film_kernels import find_film, fuse
from film_kernels.conversion.operations import convolution_of
from film_kernels.conversion.swap import Wishes, swap
from tests.helpers.conversion import as_written
from tests.helpers.conversion.equality import counted_calls, outputs_and_gradients
from tests.helpers.conversion.spellings import Together, inputs

NEED_SHAPES = {"one position, pooled factors", "permuted layer_norm", "moved nn.LayerNorm"}


def test_what_is_listed():
    model = Together(as_written.Model(written) for written in as_written.ALL)
    sites = {site.path: site for site in find_film(model, inputs(dtype=torch.float32))}
    wrong = []
    for i, written in enumerate(as_written.ALL):
        site = sites.pop(f"parts.{i}.conv", None)
        found = "" if site is None else " ".join(site.order[1:])
        reason = "" if site is None else site.reason or ""
        if found != written.order.strip() or written.word not in reason or bool(written.word) != bool(reason):
            wrong.append((written.name, found, reason))
    assert not wrong and not sites, (wrong, sites)


@pytest.mark.parametrize("dynamic", [False, True])
def test_no_convolution_is_left(dynamic):
    found = []

    def backend(module, example_inputs):
        swapped = swap(module, Wishes(norms=False))
        found.append((len(swapped), [node for node in module.graph.nodes if convolution_of(node)]))
        return module.forward

    model = Together(as_written.Model(written) for written in as_written.FUSED)
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        torch.compile(model, backend=backend, dynamic=dynamic)(*inputs(dtype=torch.float32))
    assert found == [(len(as_written.FUSED), [])]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_is_fused(dtype):
    torch.manual_seed(1)
    cases = [case for case in as_written.ALL if ("float32" in case.name) == (dtype == torch.float32)]
    model = Together(as_written.Model(written) for written in cases).to(dtype)
    twin = copy.deepcopy(model)
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        fusable = sum(site.fusable for site in find_film(model, inputs(dtype=dtype), norms=True))
    fused = fuse(model)
    with counted_calls() as calls, torch._dynamo.config.patch(capture_scalar_outputs=True):
        found = outputs_and_gradients(fused, inputs(dtype=dtype))
    assert len(calls) == fusable >= sum(bool(written.order) and not written.word for written in cases)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    expected = outputs_and_gradients(twin, inputs(dtype=dtype))
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_what_is_listed_without_example_inputs():
    """Whatever a symbolic trace can follow and tells: names of dtypes and numbers of dimensions are not among it."""
    limits = {"group_norm in float64": "group_norm film silu", "transposed rms_norm": ""}
    traced = 0
    for written in as_written.ALL:
        try:
            sites = find_film(as_written.Model(written))
        except ValueError as error:
            assert "example_inputs must be given" in str(error)
            continue
        traced += 1
        found = " ".join(word for site in sites for word in site.order[1:])
        assert found == limits.get(written.name, written.order.strip()), written.name
        word = "give example_inputs" if written.name in NEED_SHAPES else "" if written.name in limits else written.word
        assert not sites or (word in (sites[0].reason or "") and bool(sites[0].reason) == bool(word)), written.name
    assert traced > len(as_written.ALL) - 6
