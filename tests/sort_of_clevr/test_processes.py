"""Training by several processes, and what they leave behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from examples.sort_of_clevr import checkpoint, data, evaluation, model, training
from examples.sort_of_clevr.processes import Processes
from tests.helpers.clevr_example import COMMAND, SETTINGS, for_the_example, outcome


def test_two_processes_train_as_the_mean_of_their_halves(dataset, vocabulary, splits, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *COMMAND]
    options = ["train", "--data", dataset, "--output", tmp_path, "--epochs", 1, "--batch", 32]
    done = subprocess.run(
        [*launch, *map(str, options)], env=for_the_example(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test split") == 1 and "2 processes" in done.stdout
    losses = checkpoint.load(tmp_path / "checkpoint.pt")["history"]["loss"]
    assert len(losses) == 22

    train = splits["train"]
    run = training.Run({**SETTINGS, "epochs": 1}, vocabulary, train, Processes(0, 1, torch.device("cpu")))
    prepared = run.network.encoder.prepare(train.texts)
    for chosen, loss in zip(data.batches(len(train), 32, 0, 0), losses[:4], strict=False):
        halves = [chosen[0::2], chosen[1::2]]
        run.optimizer.zero_grad()
        of_halves = [
            model.loss_of(
                run.network(*evaluation.inputs_of(train, half, prepared, run.team.device)), train.answer[half]
            )
            for half in halves
        ]
        torch.stack(of_halves).mean().backward()
        torch.nn.utils.clip_grad_norm_(run.network.parameters(), training.CLIP)
        run.optimizer.step()
        run.scheduler.step()
        assert loss == pytest.approx(torch.stack(of_halves).mean().item(), rel=1e-4)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="Linux lists a process's threads there")
def test_no_thread_of_the_process_group_outlives_it():
    code = """
from pathlib import Path
import torch
from examples.sort_of_clevr.processes import processes
def gloo():
    return [task.name for task in Path("/proc/self/task").iterdir() if "gloo" in (task / "comm").read_text()]
with processes() as team:
    torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 3))(torch.ones(2, 3)).sum().backward()
    assert gloo()
assert not gloo(), "they could call into an interpreter that has ended, which aborts the process"
"""
    group = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**for_the_example(), **group, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("variable", ["RANK", "WORLD_SIZE", "LOCAL_RANK"])
def test_a_variable_that_torchrun_would_not_set_is_said(monkeypatch, capsys, variable):
    monkeypatch.setenv(variable, "first")
    code, _, err = outcome(capsys, "train")
    assert code == 1 and f"error: {variable}='first'" in err
