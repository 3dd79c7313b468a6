"""Options and variables that cannot be used, and a machine that is not the right one."""

from __future__ import annotations

import pytest
import torch

from bench import __main__ as command
from bench import drawn


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
