"""Files, folders and options that cannot be used are said in a line."""

from __future__ import annotations

import os

import pytest

from tests.helpers.clevr_example import outcome


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
