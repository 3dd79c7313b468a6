"""Options and variables that cannot be used, and a machine that is not the right one."""

from __future__ import annotations

import pytest
import torch

from bench import __main__ as command
from bench import drawn
from bench.shapes import OPERATORS


@pytest.mark.parametrize(("name", "value"), [("BUDGET_S", "soon"), ("BUDGET_S", "nan"), ("BUDGET_S", "-1"),
                                             ("OUT", __file__), ("OUT", "x" * 5000)])  # fmt: skip
def test_a_variable_that_cannot_be_used_is_said(monkeypatch, capsys, name, value):
    monkeypatch.setenv("DRY", "1")
    monkeypatch.setenv(name, value)
    assert command.main(["cpu"]) == 2
    assert capsys.readouterr().err.startswith(name)


@pytest.mark.parametrize("option", ["--layers=0", "--seconds=nan", "--seed=x", f"--out={__file__}"])
def test_an_option_of_drawn_layers_that_cannot_be_used_is_said(capsys, option):
    with pytest.raises(SystemExit):
        drawn.main([option])
    assert option.partition("=")[0] in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="it is about machines without a GPU")
def test_without_a_gpu_the_gpus_commands_say_so(monkeypatch, capsys):
    monkeypatch.delenv("DRY", raising=False)
    assert command.main(["check-gpu"]) == command.main(["gpu"]) == 2
    assert "DRY=1" in capsys.readouterr().err


def test_one_operator_can_be_run_alone(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(command, "run", lambda parts, budget, log: begun.append((parts, budget)) or [])
    monkeypatch.setenv("DRY", "1")
    monkeypatch.setenv("OUT", str(tmp_path))
    assert command.main(["cpu", "--only", "norm_film"]) == command.main(["cpu"]) == 0
    (alone, seconds), (both, twice) = begun
    assert [part.name for part in alone] == ["norm_film forward", "norm_film training", "norm_film memory"]
    assert [part.name for part in both] == [f"conv_film {part.name.split()[1]}" for part in alone] + [
        part.name for part in alone
    ]
    assert all("--operator=norm_film" in part.command(9.0) for part in alone) and twice > 1.9 * seconds


@pytest.mark.parametrize("only", [[], ["--only", "norm_film"]], ids=" ".join)
def test_results_of_an_earlier_run_are_taken_away_where_there_will_be_others(tmp_path, monkeypatch, only):
    monkeypatch.setattr(command, "run", lambda parts, budget, log: [])
    monkeypatch.setenv("DRY", "1")
    monkeypatch.setenv("OUT", str(tmp_path))
    for operator in OPERATORS:
        (tmp_path / operator).mkdir()
        (tmp_path / operator / "forward.json").write_text("{}")
    command.main(["cpu", *only])
    left = {operator for operator in OPERATORS if (tmp_path / operator / "forward.json").exists()}
    assert left == ({"conv_film"} if only else set())


def test_parts_share_out_the_time_by_operator(tmp_path):
    left, seconds = 1.0, []
    for part in command.benchmark_parts("cpu", True, tmp_path, OPERATORS):
        seconds.append(part.share * left)
        left -= seconds[-1]
    assert left == pytest.approx(0)
    assert seconds[:3] == pytest.approx([0.175, 0.25, 0.075]) and seconds[3:] == pytest.approx(seconds[:3])
