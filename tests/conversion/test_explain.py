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
        self.norm, self.act = nn.GroupNorm(2, 4), nn.PReLU()
    def forward(self, x, gamma, beta):
        x = torch.relu(gamma[:, :, None, None] * self.conv(x) + beta[:, :, None, None])
        x = torch.relu(self.norm(x) * gamma[:, :, None, None] + beta[:, :, None, None])
        return self.act(self.other(x)) * gamma[:, :, None, None]

def make_model():
    return Block(), (torch.randn(2, 3, 5, 5), torch.randn(2, 4), torch.randn(2, 4))

def alone():
    return Block()

def frozen():
    return Block().eval()

def half_frozen():
    block = Block()
    block.norm.eval()
    return block

class Many(nn.Module):
    def __init__(self):
        super().__init__()
        self.a_module_with_a_long_name = nn.ModuleList(Block() for _ in range(3))
    def forward(self, x, gamma, beta):
        return [block(x, gamma, beta) for block in self.a_module_with_a_long_name]

def many():
    return Many(), (torch.randn(2, 3, 5, 5), torch.randn(2, 4), torch.randn(2, 4))

class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x

def none():
    return nn.Linear(2, 2)

def wrong():
    return 5
"""


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    (tmp_path / "of_a_user.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield
    sys.modules.pop("of_a_user", None)


def lines_of(capsys, function: str) -> list[str]:
    main(["explain", f"of_a_user:{function}"])
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("function", ["make_model", "alone"])
def test_prints_a_table(capsys, function):
    mode, head, fused, normed, refused, empty, reason, _, empty_again, total, *last = lines_of(capsys, function)
    assert mode == "Block in training mode"
    assert head.split() == ["path", "operations", "fused", "where"]
    assert fused.split() == ["conv", "conv2d", "film", "relu", "yes", "of_a_user.py:11"]
    assert normed.split() == ["norm", "group_norm", "film", "relu", "yes", "of_a_user.py:12"]
    assert refused.split() == ["other", "conv2d", "prelu", "scale", "no", "(1)", "of_a_user.py:13"]
    assert reason.startswith("(1)  prelu is not an activation") and empty == empty_again == ""
    assert total == "2 of 3 sites are fused by film_kernels.fuse(model)"
    assert bool(last) == (function == "alone")
    if last:
        assert "of_a_user:alone may return a pair, (model, example_inputs)" in " ".join(last)


def test_a_reason_is_printed_once_and_rows_are_as_wide_as_the_terminal(capsys, monkeypatch):
    for width in (60, 100, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        lines = lines_of(capsys, "many")
        assert all(len(line) <= width for line in lines)
        words = " ".join(lines).split()
        assert words.count("activation") == 1 and words.count("(1)") == 4 and words.count("yes") == 6
        assert max(len(line) for line in lines) > 50
    assert "a_module_with_a_long_name.0.conv   conv2d film relu" in "\n".join(lines)


def test_the_mode_is_said(capsys):
    assert lines_of(capsys, "frozen")[0] == "Block in eval mode"
    assert lines_of(capsys, "half_frozen")[0] == "Block, some of its modules in training mode and some in eval mode"


def test_a_model_without_film(capsys):
    main(["explain", "of_a_user:none"])
    assert capsys.readouterr().out == "Linear in training mode\nno convolution's or norm's output meets FiLM\n"


@pytest.mark.parametrize(("factory", "words"), [
    ("of_a_user", "module:function"), ("of_a_user:missing", "missing"), ("no_such_module:f", "no_such_module"),
    ("of_a_user:wrong", r"torch\.nn\.Module"), ("of_a_user:Branches", "may return a pair, (model, example_inputs)"),
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
    assert "0 of 3 sites are fused by film_kernels.fuse(model)" in done.stdout
    assert "not faster here: of so few elements" in " ".join(done.stdout.split())
    assert "not faster here: of so few products" in " ".join(done.stdout.split())
