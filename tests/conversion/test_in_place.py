"""Changes in place around a convolution and its FiLM: what is changed before the fused call reads it is not fused, and
what is not touched is."""

from __future__ import annotations

import copy

import torch

from film_kernels import find_film, fuse
from tests.helpers.conversion import changes
from tests.helpers.conversion.equality import counted_calls
from tests.helpers.conversion.spellings import Together, inputs


def flat(outputs):
    return [y for one in outputs for y in ([one] if isinstance(one, torch.Tensor) else one)]


def check(cases, calls_expected: int) -> None:
    """The results are those of the model as it is, and so is what it leaves in its buffers."""
    torch.manual_seed(1)
    model = Together(changes.Around(case) for case in cases).double()
    twin = copy.deepcopy(model)
    fused = fuse(model)
    with counted_calls() as calls, torch.no_grad():
        found = [fused(*inputs(seed=seed)) for seed in (0, 1)]
        expected = [twin(*inputs(seed=seed)) for seed in (0, 1)]
    assert len(calls) == 2 * calls_expected
    for one, other in zip(found, expected, strict=True):
        for case, a, b in zip(cases, one, other, strict=True):
            torch.testing.assert_close(flat([a]), flat([b]), rtol=1e-9, atol=1e-9, msg=case.name)
    torch.testing.assert_close(dict(fused.named_buffers()), dict(twin.named_buffers()))


def test_every_change_in_between_is_seen():
    check(changes.REFUSED, 0)


def test_what_is_not_touched_is_fused():
    check(changes.SERVED, len(changes.SERVED))


def test_the_reasons():
    cases = (*changes.REFUSED, *changes.SERVED)
    model = Together(changes.Around(case) for case in cases)
    with torch.no_grad():
        sites = {site.path.removesuffix(".conv"): site for site in find_film(model, inputs(dtype=torch.float32))}
    for i, case in enumerate(cases):
        site = sites.get(f"parts.{i}")
        if case in changes.SERVED:
            assert site is not None and site.fusable, (case.name, site)
        elif site is not None:
            assert not site.fusable, case.name
            assert "changed in place" in site.reason or "used elsewhere" in site.reason, (case.name, site)


def test_without_example_inputs():
    """A symbolic trace writes `x += 1` as `x = x + 1`, and reads an attribute when it is used."""
    refused = 0
    for case in (*changes.REFUSED, *changes.SERVED):
        try:
            sites = find_film(changes.Around(case))
        except ValueError as error:
            assert "cannot be traced" in str(error)
            continue
        refused += bool(sites) and not sites[0].fusable
        served = case in changes.SERVED or case.name in ("+=", "attribute")
        assert [site.fusable for site in sites] in ([served], []), case.name
    assert refused > 35
