"""Writes the dataset: images as PNG files, questions as JSON lines, and the vocabulary."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tqdm import tqdm

from .errors import UserError
from .questions import ANSWERS, ask_many, vocabulary
from .scenes import draw_scene, sample_scene

QUESTIONS_FILE = "questions.jsonl"
VOCABULARY_FILE = "vocabulary.json"
QUESTIONS_OF_EACH = 10  # an image, about one object and about several (Santoro et al. 2017)
LEAST_IMAGES = 20  # each split has one then
SPLITS = ("train", "validation", "test")


def split_of(index: int) -> str:
    """The split of an image: of twenty, the last is for the test and the one before it for validation."""
    return {18: "validation", 19: "test"}.get(index % 20, "train")


def generate(folder: Path, images: int, seed: int) -> None:
    """Writes `images` images with twenty questions each to `folder`, the same bytes for the same seed.

    An image and its questions depend on the seed and on its number only, not on how many there are. Raises UserError
    where the folder holds a dataset already or cannot be written."""
    questions = folder / QUESTIONS_FILE
    try:
        if questions.exists():
            raise UserError(f"{folder} holds a dataset already: delete it or give another folder")
        (folder / "images").mkdir(parents=True, exist_ok=True)
        partial = questions.with_suffix(".partial")  # its name says that generating it was not finished
        with partial.open("w", encoding="utf-8", newline="\n") as lines:
            for index in tqdm(range(images), desc="drawing", unit="image"):
                rng = random.Random(f"{seed} {index}")
                scene = sample_scene(rng)
                name = f"images/{index:06d}.png"
                draw_scene(scene).save(folder / name)
                for question in ask_many(scene, QUESTIONS_OF_EACH, rng):
                    line = {"image": name, "split": split_of(index), **question.as_dict()}
                    lines.write(json.dumps(line) + "\n")
        about = {"words": vocabulary(), "answers": list(ANSWERS)}
        (folder / VOCABULARY_FILE).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8", newline="\n")
        partial.replace(questions)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise UserError(f"cannot write the dataset to {folder}: {error}") from error
