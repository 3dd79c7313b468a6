"""The example on Sort-of-CLEVR in small: dataset, network, training that is killed and goes on, and questions."""

from __future__ import annotations

import functools
import json
import operator
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from examples.sort_of_clevr import checkpoint, data, encoders, evaluation, model, questions, training  # noqa: E402
from examples.sort_of_clevr.__main__ import main  # noqa: E402
from examples.sort_of_clevr.errors import UserError  # noqa: E402
from examples.sort_of_clevr.network import make_network  # noqa: E402
from examples.sort_of_clevr.processes import Processes  # noqa: E402
from examples.sort_of_clevr.scenes import COLOURS, MIDDLE  # noqa: E402

CHECKOUT = Path(__file__).parents[1]
COMMAND = ["-m", "examples.sort_of_clevr"]
SMALL = ("--epochs", 3, "--batch", 32)
SETTINGS = {"plain": False, "sentence_encoder": False, "epochs": 3, "batch": 32, "learning_rate": 1e-3, "seed": 0}
PICTURES = ("curves", "confusion", "feature_maps", "gammas")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A folder with a dataset of 40 images."""
    folder = tmp_path_factory.mktemp("dataset")
    assert main(["generate", "--images", "40", "--data", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def vocabulary(dataset):
    return data.load_vocabulary(dataset)


@pytest.fixture(scope="module")
def splits(dataset, vocabulary):
    return data.load_splits(dataset, vocabulary, progress=False)


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """The results of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("results") / "of training"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    assert main(["train", "--data", str(dataset), "--output", str(folder), *map(str, SMALL)]) == 0
    torch.set_num_threads(before)
    return folder


def outcome(capsys, *argv):
    """The exit code, stdout and stderr of the command line with these arguments."""
    try:
        code = main([str(argument) for argument in argv])
    except SystemExit as exit:
        code = exit.code
    return code, *capsys.readouterr()


def environment():
    """For another process: this checkout's package and example, one thread."""
    path = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def seen(path):
    """Of each colour in an image: whether it fills a square, and the place of its middle; from the pixels alone."""
    pixels = np.array(Image.open(path))
    found = {}
    for colour, value in COLOURS.items():
        rows, columns = (pixels == value).all(2).nonzero()
        assert np.ptp(rows) == np.ptp(columns) == 10, f"{path}: the {colour} object is hidden in part"
        found[colour] = "square" if len(rows) == 11 * 11 else "circle", columns.mean(), rows.mean()
    return found


def right_answer(question, objects):
    """The answer by what can be seen, without the generator."""
    words = re.findall(r"\w+", question)
    (colour,) = set(words) & set(COLOURS)
    shape, x, y = objects[colour]
    if "how many" in question or "number" in words:
        return str(sum(other[0] == shape for other in objects.values()))
    for side, beyond in (("left", x < MIDDLE), ("right", x > MIDDLE), ("top", y < MIDDLE), ("bottom", y > MIDDLE)):
        if side in words:
            return "yes" if beyond else "no"
    others = {name: np.hypot(of[1] - x, of[2] - y) for name, of in objects.items() if name != colour}
    if set(words) & {"closest", "nearest"}:
        return objects[min(others, key=others.get)][0]
    if set(words) & {"furthest", "farthest", "distant"}:
        return objects[max(others, key=others.get)][0]
    return shape


def test_every_answer_is_what_the_image_shows(dataset):
    rows = [json.loads(line) for line in (dataset / "questions.jsonl").read_text().splitlines()]
    assert len(rows) == 40 * 20
    assert {row["kind"] for row in rows} == set(questions.KINDS)
    wordings = sum(len(texts) for texts in questions.TEMPLATES.values())
    assert len({row["question"] for row in rows}) == wordings * len(COLOURS)
    assert [row["split"] for row in rows[::20]] == (["train"] * 18 + ["validation", "test"]) * 2
    objects = {name: seen(dataset / name) for name in {row["image"] for row in rows}}
    for row in rows:
        assert row["answer"] == right_answer(row["question"], objects[row["image"]]), row


def test_the_same_seed_gives_the_same_bytes(dataset, tmp_path):
    for name, options in (("same", ["--images", 40]), ("fewer", ["--images", 20]), ("other", ["--seed", 1])):
        arguments = ["generate", "--images", 20, *options, "--data", tmp_path / name]
        assert main([str(argument) for argument in arguments]) == 0
    whole, fewer, other = files_of(dataset), files_of(tmp_path / "fewer"), files_of(tmp_path / "other")
    assert files_of(tmp_path / "same") == whole
    assert set(fewer) < set(whole)
    lines = Path("questions.jsonl")
    assert all(content == whole[name] for name, content in fewer.items() if name != lines)
    assert whole[lines].startswith(fewer[lines])
    images = [name for name in other if name.suffix == ".png"]
    assert len(images) == 20 and all(other[name] != whole[name] for name in images)


def test_every_word_of_a_question_is_in_the_vocabulary(dataset, vocabulary, splits):
    used = {word for split in splits.values() for text in split.texts for word in questions.words(text)}
    assert used <= set(vocabulary.words)
    assert len(splits["train"]) == 36 * 20 and splits["train"].images.shape == (36, 3, 75, 75)


def test_a_run_that_goes_on_sees_the_batches_that_were_left():
    whole = list(data.batches(100, 8, seed=3, epoch=2))
    assert len(whole) == 12 and len(set(torch.cat(whole).tolist())) == 96
    assert torch.equal(torch.stack(whole[5:]), torch.stack(list(data.batches(100, 8, seed=3, epoch=2, done=5))))
    assert not torch.equal(whole[0], next(data.batches(100, 8, seed=3, epoch=3)))
    assert not torch.equal(whole[0], next(data.batches(100, 8, seed=4, epoch=2)))


def test_plain_and_fused_are_one_network(vocabulary, splits):
    networks = []
    for plain in (True, False):
        torch.manual_seed(0)
        networks.append(make_network(vocabulary, {**SETTINGS, "plain": plain}).double())
    states = [network.state_dict() for network in networks]
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    split, found = splits["train"], []
    for network in networks:
        inputs = evaluation.inputs_of(
            split, torch.arange(16), network.encoder.prepare(split.texts), torch.device("cpu")
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "float", torch.Tensor.double)  # of the images
            patch.setattr(model, "coordinates", lambda *of, inner=model.coordinates: inner(*of).double())
            scores = network(*inputs)
        model.loss_of(scores, split.answer[:16]).backward()
        found.append([scores.detach(), *(parameter.grad for parameter in network.parameters())])
    for plain, fused in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-9, atol=1e-12)


def test_the_encoder_sees_words_and_not_what_pads_them(vocabulary):
    encoder = encoders.GRUEncoder(vocabulary.words)
    short, long = (
        "Is the RED object on the left?",
        "what is the number of objects shaped like the grey one, itself included?",
    )
    together = encoder(encoder.prepare([short, long]))
    torch.testing.assert_close(together[:1], encoder(encoder.prepare(["is the red object on the left"])))
    assert (together[0] - together[1]).abs().max() > 0.01
    order = encoder(encoder.prepare(["red left", "left red"]))
    assert (order[0] - order[1]).abs().max() > 0.001


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
    run = subprocess.Popen([sys.executable, *COMMAND, *arguments, "--save-every", "1"], env=environment(),
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


def test_two_processes_train_as_the_mean_of_their_halves(dataset, vocabulary, splits, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *COMMAND]
    options = ["train", "--data", dataset, "--output", tmp_path, "--epochs", 1, "--batch", 32]
    done = subprocess.run([*launch, *map(str, options)], env=environment(), capture_output=True, text=True, check=False)
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
        [sys.executable, "-c", code], env={**environment(), **group, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_ask_answers(trained, dataset, capsys):
    code, printed, _ = outcome(
        capsys,
        "ask",
        dataset / "images/000019.png",
        "What shape is the red object?",
        "--checkpoint",
        trained / "checkpoint.pt",
    )
    assert code == 0
    answer, next_one = re.fullmatch(r"(\w+) \([\d.]+%; next: (\w+), [\d.]+%\)\n", printed).groups()
    assert {answer, next_one} <= set(questions.ANSWERS)


@pytest.mark.parametrize(
    "image, question, message",
    [
        ("{dataset}/images/000019.png", "what shape is the purple hippo?", "do not know the words 'purple', 'hippo'"),
        ("{dataset}/images/000019.png", "is the red object round?", "do not know the word 'round'"),
        ("{dataset}/images/000019.png", "?!", "1 to 24 words"),
        ("{dataset}/images/000019.png", "red " * 25, "1 to 24 words"),
        ("{dataset}/none.png", "is the red object on the left?", "there is no such image"),
        ("{dataset}/questions.jsonl", "is the red object on the left?", "cannot read it as an image"),
        ("{dataset}", "is the red object on the left?", "cannot read it as an image"),
    ],
)
def test_what_cannot_be_asked_is_said(trained, dataset, capsys, image, question, message):
    found = outcome(capsys, "ask", image.format(dataset=dataset), question, "--checkpoint", trained / "checkpoint.pt")
    assert found[0] == 1
    assert message in found[2] and found[2].startswith("error: ") and "Traceback" not in found[2]


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


@pytest.mark.parametrize("content", [
    b"", b"[]", b"null", b"[" * 100_000, b"\xff", b'{"words": "abc", "answers": ["a", "b"]}',
    b'{"words": [1, 2], "answers": ["a", "b"]}', b'{"words": ["a", "b"], "answers": ["a", "a"]}',
    b'{"words": ["a", "b"], "answers": []}',
])  # fmt: skip
def test_a_vocabulary_that_cannot_be_used_is_said(tmp_path, capsys, content):
    (tmp_path / "vocabulary.json").write_bytes(content)
    code, _, err = outcome(capsys, "train", "--data", tmp_path, "--output", tmp_path)
    assert code == 1 and err.startswith("error: ") and "vocabulary.json: not a vocabulary" in err


def test_a_folder_whose_name_is_not_utf_8(tmp_path, capsys):
    folder = os.fsdecode(bytes(tmp_path) + b"/\x80")
    assert outcome(capsys, "generate", "--images", 20, "--data", folder)[:2] == (
        0, f"wrote 20 images and their questions to {tmp_path}/\\udc80\n",
    )  # fmt: skip


@pytest.mark.parametrize("variable", ["RANK", "WORLD_SIZE", "LOCAL_RANK"])
def test_a_variable_that_torchrun_would_not_set_is_said(monkeypatch, capsys, variable):
    monkeypatch.setenv(variable, "first")
    code, _, err = outcome(capsys, "train")
    assert code == 1 and f"error: {variable}='first'" in err


@pytest.mark.parametrize(
    "line, message",
    [
        ("no JSON\n", "not JSON lines"),
        ("[" * 100_000 + "\n", "after line 800: not JSON lines"),
        (
            '{"image": "a\\u0000.png", "split": "train", "question": "a?", "answer": "1", "kind": "count"}\n',
            "cannot read it as an image",
        ),
        (
            '{"image": "\\ud800.png", "split": "train", "question": "a?", "answer": "1", "kind": "count"}\n',
            "cannot read it as an image",
        ),
        ('{"image": "a.png"}\n', "line 801: not an object of the texts"),
        (
            '{"image": "{image}", "split": "train", "question": "a?", "answer": "7", "kind": "count"}\n',
            "line 801: an unknown",
        ),
        (
            '{"image": "none.png", "split": "train", "question": "a?", "answer": "1", "kind": "count"}\n',
            "no such image",
        ),
    ],
)
def test_a_dataset_that_cannot_be_used_is_said(dataset, tmp_path, capsys, line, message):
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "images").symlink_to(dataset / "images")
    (folder / "vocabulary.json").write_bytes((dataset / "vocabulary.json").read_bytes())
    lines = (dataset / "questions.jsonl").read_text() + line.replace("{image}", "images/000000.png")
    (folder / "questions.jsonl").write_text(lines)
    code, _, err = outcome(capsys, "train", "--data", folder, "--output", tmp_path)
    assert code == 1 and message in err and "Traceback" not in err


@pytest.mark.parametrize(
    "options, code, message",
    [
        (["generate", "--images", 19], 2, "--images"),
        (["generate", "--data", "{dataset}"], 1, "holds a dataset already"),
        (["train", "--data", "{dataset}/none"], 1, "vocabulary.json: there is no such file"),
        (["train", "--data", "{dataset}", "--output", "{dataset}/questions.jsonl/x"], 1, "cannot make the folder"),
        (["train", "--data", "{dataset}", "--output", "{new}", "--batch", 721], 1, "only 720 questions"),
        (["train", "--learning-rate", "nan"], 2, "--learning-rate"),
        (["train", "--epochs", "0"], 2, "--epochs"),
        (["train", "--data", "{dataset}", "--output", "{new}/" + "x" * 5000], 1, "cannot make the folder"),
        (["train", "--data", "x" * 5000], 1, "not a vocabulary"),
        (["generate", "--data", "x" * 5000], 1, "cannot write the dataset"),
        (["generate", "--data", "a\0b"], 1, "cannot write the dataset"),
        (["ask", "x.png", "red", "--checkpoint", "x" * 5000], 1, "cannot read it as a checkpoint"),
        (["ask", "x.png"], 2, "QUESTION"),
        ([], 2, "generate|train|ask"),
    ],
)
def test_options_that_cannot_be_used(dataset, tmp_path, capsys, options, code, message):
    given = [str(option).format(dataset=dataset, new=tmp_path) for option in options]
    got, _, err = outcome(capsys, *given)
    assert got == code
    assert message in err and "Traceback" not in err


def test_the_pretrained_encoder_needs_no_network(dataset, tmp_path, capsys, monkeypatch):
    pytest.importorskip("wordllama")
    import socket

    def refuse(*arguments):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    options = ["--data", dataset, "--output", tmp_path, "--epochs", 1, "--batch", 64, "--sentence-encoder"]
    assert outcome(capsys, "train", *options)[0] == 0
    image, path = dataset / "images/000019.png", tmp_path / "checkpoint.pt"
    code, printed, err = outcome(capsys, "ask", image, "which form has the crimson thing?", "--checkpoint", path)
    assert code == 0 and printed.split()[0] in questions.ANSWERS, err
    assert outcome(capsys, "ask", image, "?", "--checkpoint", path)[0] == 1


def test_a_missing_pretrained_encoder_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "wordllama", None)
    with pytest.raises(UserError, match="pip install wordllama"):
        encoders.PretrainedEncoder()
