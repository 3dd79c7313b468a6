"""Layers drawn by lot, and where the automatic choice lost on them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from bench import drawn
from bench.losses import Comparison
from bench.outcomes import Failed, Refused, Timed
from bench.shapes import OPERATORS
from film_kernels.backends import BACKENDS
from tests.helpers.performance_suite import CPU


@pytest.mark.parametrize("operator", OPERATORS)
def test_layers_drawn_by_lot_are_the_same_for_a_seed_and_are_all_reported(tmp_path, monkeypatch, operator):
    rows = drawn.draw(operator, 3, 40)
    assert rows == drawn.draw(operator, 3, 40) != drawn.draw(operator, 4, 40)
    assert {row.case.operator for row in rows} == {operator}
    assert all(math.prod(row.problem(CPU).out_shape) > 0 for row in rows)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # in the interpreter `triton` would serve, for minutes
    monkeypatch.setattr(drawn, "draw", lambda operator, seed, count: [replace(row, tiny=True) for row in rows[:count]])
    file, options = tmp_path / operator / drawn.FILE, ["--only", operator, "--layers", "2", "--out", str(tmp_path)]
    drawn.main([*options, "--seconds", "60"])
    text = file.read_text()
    assert text.startswith(f"# 2 layers of {operator} drawn by lot (seed 0)")
    assert all(f"| {row.name} |" in text for row in rows[:2])
    drawn.main([*options, "--seconds", "0"])  # nothing was in time
    assert file.read_text().startswith("# 0 layers")
    assert [path.name for path in tmp_path.iterdir()] == [operator]


def test_layers_of_each_operator_are_drawn_unless_one_is_asked_for(tmp_path):
    drawn.main(["--seconds", "0", "--out", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == set(OPERATORS)


def compared(**milliseconds):
    """A comparison in which `cpu` was chosen; `automatic` is the choice's time."""
    return Comparison({name: one / 1e3 for name, one in milliseconds.items()}, "cpu")


def test_only_losses_of_more_than_a_tenth_are_listed_and_the_worst_first():
    found = {
        "won": {"forward": compared(plain=3, automatic=1, vendor=2), "training": compared(plain=1.05, automatic=1)},
        "near": {"forward": compared(plain=1, automatic=1.09), "training": compared(plain=2, automatic=1.09, vendor=1)},
        "lost": {"forward": compared(plain=4, automatic=3, vendor=2), "training": compared(plain=5, automatic=20)},
    }
    text = drawn.report("norm_film", found, 7)
    table = text.split("lost by more than 10% here:\n\n")[1].strip().splitlines()
    assert table[0] == "| layer | chosen | its time, ms | faster | its time, ms | chosen / faster |"
    assert table[2:] == [
        "| lost, training | cpu | 20 | plain | 5 | 4.00 |",
        "| lost, forward | cpu | 3 | vendor | 2 | 1.50 |",
    ]
    assert "| near | 0.92 | 1.83 |" in text  # the other table stays against plain PyTorch


def test_without_a_loss_it_is_said():
    text = drawn.report(
        "norm_film", {"won": {"forward": compared(plain=3, automatic=1), "training": compared(plain=3, automatic=1)}}, 0
    )
    assert text.endswith("\nNothing was faster than the automatic choice by more than 10% in any layer.\n")


def of_times(**outcomes):
    """A runner whose peers come out as these do; others refuse."""

    class Fake:
        def __init__(self, *arguments):
            pass

        def measure(self, row, kind, names):
            return {name: outcomes.get(name, Refused("not here")) for name in names}

    return Fake


def test_the_choice_is_compared_with_every_backend_that_serves(monkeypatch):
    (row,) = drawn.draw("conv_film", 0, 1)
    times = {"plain": Timed([3.0, 1.0, 2.0]), "automatic": Timed([1.5]), "vendor": Timed([1.0])}
    monkeypatch.setattr(drawn, "choose", lambda problem, pin: BACKENDS["cpu"])
    monkeypatch.setattr(drawn, "Runner", of_times(**times, cpu=Timed([9.0]), reference=Timed([9.0])))
    (found,) = drawn.measure([row], 1.0).values()
    for kind in ("forward", "training"):
        assert found[kind] == Comparison({"plain": 2.0, "automatic": 1.5, "vendor": 1.0}, "cpu")
        assert (found[kind].ratio, found[kind].fastest, found[kind].loss) == (2 / 1.5, "vendor", 1.5)


@pytest.mark.parametrize("name", ["plain", "automatic", "vendor"])
def test_whatever_fails_on_a_drawn_layer_ends_the_run(monkeypatch, name):
    outcomes = {"plain": Timed([1.0]), "automatic": Timed([1.0]), name: Failed("wrong", fatal=False)}
    monkeypatch.setattr(drawn, "choose", lambda problem, pin: BACKENDS["cpu"])
    monkeypatch.setattr(drawn, "Runner", of_times(**outcomes))
    with pytest.raises(RuntimeError, match=f"forward, {name}: wrong"):
        drawn.measure(drawn.draw("conv_film", 0, 1), 1.0)


def test_a_layer_without_a_time_of_plain_pytorch_came_too_late(monkeypatch):
    monkeypatch.setattr(drawn, "Runner", of_times(automatic=Timed([1.0])))
    assert drawn.measure(drawn.draw("conv_film", 0, 2), 1.0) == {}
