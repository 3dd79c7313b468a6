"""Training: its results, and a run that is killed goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import numpy as np
import torch
from PIL import Image

from examples.sort_of_clevr import checkpoint, data, evaluation, questions
from tests.helpers.clevr_example import COMMAND, SMALL, for_the_example, outcome

PICTURES = ("curves", "confusion", "feature_maps", "gammas")


def test_a_run_that_goes_on_sees_the_batches_that_were_left():
    whole = list(data.batches(100, 8, seed=3, epoch=2))
    assert len(whole) == 12 and len(set(torch.cat(whole).tolist())) == 96
    assert torch.equal(torch.stack(whole[5:]), torch.stack(list(data.batches(100, 8, seed=3, epoch=2, done=5))))
    assert not torch.equal(whole[0], next(data.batches(100, 8, seed=3, epoch=3)))
    assert not torch.equal(whole[0], next(data.batches(100, 8, seed=4, epoch=2)))


def test_training_leaves_its_results(trained, dataset):
    report = json.loads((trained / "report.json").read_text())
    assert report["steps"] == 3 * (36 * 20 // 32) and report["test_questions"] == 40
    assert set(report["test"]) == {*questions.KINDS, "non-relational", "relational"}
    counts = torch.tensor([report["confusion"][kind] for kind in questions.KINDS])
    assert counts.sum() == 40 and evaluation.accuracies(counts) == report["test"]
    assert report["kept_by_autograd_bytes"] > 0 and report["seconds"] > 0
    for name in PICTURES:
        with Image.open(trained / f"{name}.png") as picture:
            picture.load()
            assert picture.format == "PNG" and min(picture.size) >= 300
    history = checkpoint.load(trained / "checkpoint.pt")["history"]
    assert np.mean(history["loss"][-10:]) < 0.8 * np.mean(history["loss"][:5])
    assert [step for step, _ in history["validation"]] == [22, 44, 66]


def test_a_killed_run_goes_on_as_if_nothing_had_happened(trained, dataset, tmp_path, capsys):
    arguments = ["train", "--data", dataset, "--output", tmp_path, *SMALL]
    arguments = [str(argument) for argument in arguments]
    path = tmp_path / "checkpoint.pt"
    run = subprocess.Popen([sys.executable, *COMMAND, *arguments, "--save-every", "1"], env=for_the_example(),
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    while run.poll() is None and not (path.exists() and checkpoint.load(path)["step"] >= 25):
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    done = checkpoint.load(path)["step"]
    assert 25 <= done < 66
    code, _, err = outcome(capsys, *arguments)
    assert code == 1 and "--resume" in err
    code, _, err = outcome(capsys, *arguments, "--resume", "--learning-rate", 1)
    assert code == 1 and "learning_rate 0.001" in err
    assert outcome(capsys, *arguments, "--resume")[0] == 0
    whole, resumed = (checkpoint.load(folder / "checkpoint.pt") for folder in (trained, tmp_path))
    for name in ("loss", "accuracy", "validation"):
        assert resumed["history"][name] == whole["history"][name]
    for name, tensor in whole["network"].items():
        assert torch.equal(resumed["network"][name], tensor), name
