"""`python -m film_kernels explain module:function`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import film_kernels
from film_kernels.__main__ import main

MODULE = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.norm = nn.GroupNorm(2, 4)
    def forward(self, x, gamma, beta):
        x = torch.relu(gamma[:, :, None, None] * self.conv(x) + beta[:, :, None, None])
        return self.norm(self.other(x)) * gamma[:, :, None, None] + beta[:, :, None, None]

def make_model():
    return Block(), (torch.randn(2, 3, 5, 5), torch.randn(2, 4), torch.randn(2, 4))

def alone():
    return Block()

def none():
    return nn.Linear(2, 2)

def wrong():
    return 5
"""


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    (tmp_path / "of_a_user.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield
    sys.modules.pop("of_a_user", None)


@pytest.mark.parametrize("function", ["make_model", "alone"])
def test_prints_a_table(capsys, function):
    main(["explain", f"of_a_user:{function}"])
    head, fused, refused, empty, total = capsys.readouterr().out.splitlines()
    assert head.split() == ["path", "operations", "fused", "where"]
    assert fused.split() == ["conv", "conv2d", "film", "relu", "yes", "of_a_user.py:11"]
    assert refused.startswith("other  conv2d group_norm film  FiLM follows group_norm")
    assert refused.endswith("of_a_user.py:12") and empty == ""
    assert total == "1 of 2 sites are fused by film_kernels.fuse(model)"


def test_a_model_without_film(capsys):
    main(["explain", "of_a_user:none"])
    assert capsys.readouterr().out == "no convolution's output meets FiLM\n"


@pytest.mark.parametrize(("factory", "words"), [
    ("of_a_user", "module:function"), ("of_a_user:missing", "missing"), ("no_such_module:f", "no_such_module"),
    ("of_a_user:wrong", r"torch\.nn\.Module"),
])  # fmt: skip
def test_what_is_wrong_is_said(capsys, factory, words):
    with pytest.raises(SystemExit):
        main(["explain", factory])
    assert words.replace("\\", "") in capsys.readouterr().err


def test_on_the_command_line(tmp_path):
    command = [sys.executable, "-m", "film_kernels", "explain", "of_a_user:make_model"]
    package = str(Path(film_kernels.__file__).parents[1])
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": package}
    )
    assert done.returncode == 0, done.stderr
    assert "1 of 2 sites" in done.stdout
