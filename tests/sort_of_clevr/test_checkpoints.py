"""Checkpoints that are damaged, wrong, or would run a command."""

from __future__ import annotations

import functools
import operator
import os
import pickle

import pytest
import torch

from tests.helpers.clevr_example import SETTINGS, outcome


@pytest.mark.parametrize("content", [None, b"", b"no checkpoint", "cut", {"step": 1}], ids=str)
def test_a_checkpoint_that_cannot_be_used_is_said(trained, dataset, tmp_path, capsys, content):
    path = tmp_path / "checkpoint.pt"
    if isinstance(content, dict):
        torch.save(content, path)
    elif content is not None:
        path.write_bytes((trained / "checkpoint.pt").read_bytes()[:5000] if content == "cut" else content)
    image = dataset / "images/000019.png"
    code, _, err = outcome(capsys, "ask", image, "is the red object on the left?", "--checkpoint", path)
    assert code == 1 and f"error: {path}" in err and len(err.splitlines()) == 1
    code, _, err = outcome(capsys, "train", "--data", dataset, "--output", tmp_path, "--resume")
    assert code == 1 and f"error: {path}" in err


class Command:
    """What runs a command where it is unpickled by something that trusts it."""

    def __reduce__(self):
        return os.system, ("exit 1",)


WRONG = {  # entries of a checkpoint, and what they must not be
    "settings": [None, {}, {**SETTINGS, "plain": 1}, {"plain": False}, {**SETTINGS, "seed": [0]}],
    "words": [None, "red", [1, 2], ["red"]],
    "answers": [None, ["yes"], ["yes", "no"], [["yes"], ["no"]]],
    "network": [None, [], {}, {"a": torch.ones(2)}, {"a": 1}, {1: torch.ones(2)}],
    "optimizer": [None, {}, [1]],
    "scheduler": [None, {}, [1]],
    "rng": [None, torch.ones(3), torch.ones(5056, dtype=torch.uint8).to_sparse()],
    "step": [None, -1, 2**70, 1.0, torch.ones(2), True],
    "history": [None, {}, {"loss": 1.0}, {name: [] for name in ("loss", "accuracy", "validation")}],
    "format": [None, 2, torch.ones(2), True],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_checkpoint_with_a_wrong_entry_is_said(trained, dataset, tmp_path, capsys, name, value):
    path = tmp_path / "checkpoint.pt"
    torch.save({**torch.load(trained / "checkpoint.pt"), name: value}, path)
    options = ["--epochs", 3, "--batch", 32, "--save-every", 1000]
    code, _, err = outcome(capsys, "train", "--data", dataset, "--output", tmp_path, "--resume", *options)
    assert code == 1 and err.splitlines()[-1].startswith("error: ") and "Traceback" not in err
    code, _, err = outcome(capsys, "ask", dataset / "images/000019.png", "red", "--checkpoint", path)
    not_asked_for = name in ("optimizer", "scheduler", "rng") and isinstance(value, (dict, torch.Tensor))
    assert code == (0 if not_asked_for else 1) and "Traceback" not in err


@pytest.mark.parametrize("path", [
    ("scheduler", "_schedule_phases", 0, "end_lr"), ("scheduler", "total_steps"), ("scheduler", "last_epoch"),
    ("optimizer", "param_groups", 0, "lr"), ("optimizer", "state", 0, "exp_avg"), ("history", "loss", 0),
    ("history", "validation", 0), ("history", "validation", 0, 1, "relational"), ("network", "head.answer.bias"),
])  # fmt: skip
def test_a_checkpoint_with_something_wrong_within_an_entry_is_said(trained, dataset, tmp_path, capsys, path):
    state = torch.load(trained / "checkpoint.pt")
    *inner, last = path
    place = functools.reduce(operator.getitem, inner, state)
    place[last] = "x" if last != "total_steps" else 67
    torch.save(state, tmp_path / "checkpoint.pt")
    options = ["--epochs", 3, "--batch", 32, "--resume"]
    code, _, err = outcome(capsys, "train", "--data", dataset, "--output", tmp_path, *options)
    assert code == 1 and err.splitlines()[-1].startswith("error: ") and "Traceback" not in err


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_checkpoint_that_would_run_a_command_is_not_trusted(dataset, tmp_path, capsys):
    path = tmp_path / "checkpoint.pt"
    for write in (lambda: torch.save(Command(), path), lambda: path.write_bytes(pickle.dumps(Command()))):
        write()
        code, _, err = outcome(capsys, "ask", dataset / "images/000019.png", "red", "--checkpoint", path)
        assert code == 1 and "it is damaged, or holds more than tensors" in err and len(err.splitlines()) == 1
