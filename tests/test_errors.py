"""The CPU kernels are held to the rule where draws are not dense normal noise: every path, every kind of bench/draws.py."""

from __future__ import annotations

import pytest
import torch

import exact
from bench.draws import KINDS, draw
from bench.errors import DTYPES, LAYERS, MOST, Layer, main, measure
from cases import NAMES, Case, hold_to_the_rule, run

BY_NAME = {layer.name: layer for layer in LAYERS}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_errors_of_cpu_kernels(layer, kind):
    ratios = measure(layer, kind, draws=2)
    assert all(ratio <= MOST for ratio in ratios.values()), ratios
