"""The dataset: every answer is what its image shows, and a seed gives the same bytes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from PIL import Image

from examples.sort_of_clevr import questions
from examples.sort_of_clevr.__main__ import main
from examples.sort_of_clevr.scenes import COLOURS, MIDDLE


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
