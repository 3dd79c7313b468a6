"""Arrays that a model makes by numpy at every call: made once where nothing but numbers goes into them, and every call
gets its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from film_kernels.conversion import method, numpy_constants
from tests.helpers.conversion.equality import fused_copy


def blur():
    k = np.asarray((1, 3, 3, 1), dtype=np.float32)
    k = np.outer(k, k)
    k /= np.sum(k)
    return torch.tensor(k)


def written_into():
    return torch.from_numpy(np.ones((4, 4), dtype=np.float32) * 0.1).mul_(3)


def of_two_arrays():
    a = np.arange(16, dtype=np.float32).reshape(4, 4)
    return torch.from_numpy(a) + torch.from_numpy(a * 2)  # the first is read twice


FILTERS = {"blur": (blur, True), "written into": (written_into, True), "of two": (of_two_arrays, None)}


class Blurred(nn.Module):
    def __init__(self, made) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.made, self.norm = made, nn.GroupNorm(2, 4)

    def forward(self, x, g):
        x = F.conv2d(x.flatten(0, 1)[:, None], self.made()[None, None]).squeeze(1).unflatten(0, x.shape[:2])
        return F.silu(self.norm(x) * g[:, :, None, None])


@pytest.mark.parametrize("made, folded", FILTERS.values(), ids=FILTERS)
def test_every_call_gives_what_the_model_gives(made, folded, monkeypatch):
    model, runs = Blurred(made), []
    real = numpy_constants._run

    def run(nodes):
        value = real(nodes)
        runs.append(value is not None)
        return value

    monkeypatch.setattr(numpy_constants, "_run", run)
    fused = fused_copy(model)
    x, g = torch.randn(2, 4, 9, 9), torch.randn(2, 4)
    for _ in range(3):
        torch.testing.assert_close(fused(x, g), model(x, g))
    assert folded is None or any(runs) == folded
    assert len(runs) <= 3, "once for each capture"


def test_what_comes_with_the_call_is_left():
    class Model(Blurred):
        def forward(self, x, g):
            scaled = torch.from_numpy(np.sqrt(np.abs(g.numpy())) * np.float32(2))
            return F.silu(self.norm(x) * scaled[:, :, None, None])

    model = Model(blur)
    fused = fused_copy(model)
    with torch.no_grad():
        for _ in range(3):
            x, g = torch.randn(2, 4, 9, 9), torch.randn(2, 4)
            torch.testing.assert_close(fused(x, g), model(x, g))


def test_random_numbers_are_drawn_at_every_call():
    class Model(Blurred):
        def forward(self, x, g):
            return super().forward(x, g) + torch.from_numpy(np.random.randn(1)).float()

    fused = fused_copy(Model(blur))
    x, g = torch.randn(2, 4, 9, 9), torch.randn(2, 4)
    assert len({fused(x, g).sum().item() for _ in range(4)}) == 4


def test_a_graph_without_any_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(numpy_constants, "_put", lambda *_: pytest.fail("nothing to put"))
    graph = torch.fx.symbolic_trace(nn.Linear(2, 2))
    numpy_constants.fold_numpy(graph)
    assert method.fold_numpy is numpy_constants.fold_numpy
