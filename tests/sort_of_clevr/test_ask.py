"""Questions about an image, and what cannot be asked."""

from __future__ import annotations

import re

import pytest

from examples.sort_of_clevr import questions
from tests.helpers.clevr_example import outcome


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
