"""The machine's limit: products and bytes of a convolution, passes over memory of a norm."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench import limits, passes
from bench.norm_case import NormCase
from bench.outcomes import Timed
from bench.runner import Budget, Runner
from bench.shapes import TINY, Row
from tests.helpers.performance_suite import CPU, SHORT

L2 = 4096  # bytes


@pytest.fixture(autouse=True)
def small_cache(monkeypatch):
    monkeypatch.setattr(passes, "_second_level", lambda: L2)


def test_the_limit_is_the_slower_of_products_and_bytes():
    row = TINY["conv_film"]
    assert limits.cost(row, CPU, "forward") == (2 * 8 * 16 * 4, 4 * (64 + 32 + 128))
    assert limits.cost(row, CPU, "training") == (6 * 8 * 16 * 4, 4 * (3 * 64 + 3 * 32 + 2 * 128))
    assert limits.share(limits.Cost(10, 2), limits.Peaks(10, 1), 4) == 0.5
    assert limits.share(limits.Cost(10, 2), limits.Peaks(2.5, 1), 4) == 1


def norm_row(norm, shape, **options):
    layout = {"channels_last": options.pop("channels_last", False)}
    return Row(NormCase("it", shape, norm, small=shape, **options), **layout)


@pytest.mark.parametrize(
    ("row", "fits"),
    [
        (norm_row("group", (2, 8, 16, 32), num_groups=4), True),  # 2 channels of 512 positions: 4096 bytes
        (norm_row("group", (2, 8, 16, 33), num_groups=4), False),
        (norm_row("group", (2, 8, 16, 32), num_groups=4, channels_last=True), False),  # all 8 channels
        (norm_row("group", (2, 8, 8, 16), num_groups=4, channels_last=True), True),
        (norm_row("instance", (2, 8, 32, 32)), True),
        (norm_row("instance", (2, 8, 32, 33)), False),
        (norm_row("batch", (4, 2, 16, 16)), True),  # one channel of all samples
        (norm_row("batch", (4, 2, 16, 16), channels_last=True), False),
        (norm_row("rms", (4, 64, 64, 64)), True),
        (norm_row("channel", (4, 1024, 768), channel_dim=-1), True),
    ],
)
def test_a_group_that_fits_the_cache_of_a_core_is_read_once(row, fits):
    assert passes.passes(row, CPU, "forward") == (2 if fits else 3)
    assert passes.passes(row, CPU, "training") == (5 if fits else 8)


def test_half_precision_is_half_as_large():
    row = norm_row("group", (2, 8, 16, 64), num_groups=4)
    assert passes.passes(row, CPU, "forward") == 3 and passes.passes(replace(row, half=True), CPU, "forward") == 2


def test_a_norm_in_the_caches_has_no_limit_and_one_beyond_them_a_share_of_a_copys_speed(monkeypatch):
    monkeypatch.setattr(passes.torch, "get_num_threads", lambda: 1)
    inside, beyond = (norm_row("instance", (1, channels, 16, 16)) for channels in (2, 3))  # 2048 bytes, and its output
    times = {limits.COPY: [9.0, 3.0, 1.0]}
    assert limits.share_of_limit(inside, CPU, "forward", 6.0, times) is None
    assert limits.share_of_limit(beyond, CPU, "forward", 6.0, times) == 0.5  # two passes, as a copy
    assert limits.share_of_limit(beyond, CPU, "training", 10.0, times) == 0.75  # five


def test_the_copy_is_timed_beside_the_peers_and_is_none_of_them():
    row = norm_row("group", (2, 8, 16, 32), num_groups=4)
    outcomes = Runner(CPU, Budget(5, 1), SHORT).measure(row, "training", ("plain", "automatic"))
    assert list(outcomes) == ["plain", "automatic"]
    for outcome in outcomes.values():
        assert isinstance(outcome, Timed) and outcome.about["share_of_limit"] > 0 and outcome.about["copy"] > 0
