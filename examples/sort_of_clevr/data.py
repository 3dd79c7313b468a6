"""The dataset in memory, and the order in which a training run goes through it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from .errors import UserError
from .generate import QUESTIONS_FILE, SPLITS, VOCABULARY_FILE
from .likeness import is_list_of
from .questions import KINDS
from .scenes import SIZE

COLUMNS = ("image", "split", "question", "answer", "kind")


@dataclass(frozen=True)
class Vocabulary:
    """The words that a question can have, and the answers that there are."""

    words: list[str]
    answers: list[str]


@dataclass(frozen=True)
class Split:
    """The images of a split, and its N questions.

    images (I, 3, 75, 75) uint8; `image`, `text`, `answer` and `kind`, (N,) int64, say of each question where its image
    stands in `images`, it itself in `texts`, its answer among the vocabulary's and its kind in KINDS."""

    names: list[str]
    images: Tensor
    texts: list[str]
    image: Tensor
    text: Tensor
    answer: Tensor
    kind: Tensor

    def __len__(self) -> int:
        return len(self.answer)


def load_image(path: Path) -> Tensor:
    """The image at `path`, RGB, (3, 75, 75) uint8; one of another size is resized.

    Raises UserError for a file that is missing or is not an image."""
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
            image.load()
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such image") from error
    except Exception as error:  # whatever bad data make Pillow stumble over
        raise UserError(f"{path}: cannot read it as an image: {error}") from error
    if image.size != (SIZE, SIZE):
        image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def load_vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary that the generator wrote. Raises UserError where it is missing or not as it was written."""
    path = folder / VOCABULARY_FILE
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        vocabulary = Vocabulary(about["words"], about["answers"])
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file; `generate` makes a dataset") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not a vocabulary as `generate` writes it: {error!r}") from error
    for name, entries in (("words", vocabulary.words), ("answers", vocabulary.answers)):
        if not is_list_of(entries, str) or len(entries) < 2 or len(set(entries)) < len(entries):
            raise UserError(f"{path}: not a vocabulary as `generate` writes it: {name} must be different texts")
    return vocabulary


def load_splits(folder: Path, vocabulary: Vocabulary, progress: bool) -> dict[str, Split]:
    """The splits of the dataset in `folder`, by name. Raises UserError naming the file and line that cannot be used."""
    rows = _read_rows(folder / QUESTIONS_FILE)
    splits = {}
    for split in SPLITS:
        of_split = [(number, row) for number, row in rows if row["split"] == split]
        if not of_split:
            raise UserError(f"{folder / QUESTIONS_FILE}: no question of the split {split!r}")
        names = sorted({row["image"] for _, row in of_split})
        texts = sorted({row["question"] for _, row in of_split})
        name_at, text_at = ({entry: at for at, entry in enumerate(entries)} for entries in (names, texts))
        codes = []
        for number, row in of_split:
            if row["answer"] not in vocabulary.answers or row["kind"] not in KINDS:
                raise UserError(f"{folder / QUESTIONS_FILE}, line {number}: an unknown answer or kind")
            of_names = name_at[row["image"]], text_at[row["question"]]
            codes.append((*of_names, vocabulary.answers.index(row["answer"]), KINDS.index(row["kind"])))
        shown = tqdm(names, desc=f"images of {split}", unit="image", leave=False, disable=not progress)
        images = torch.stack([load_image(folder / name) for name in shown])
        splits[split] = Split(names, images, texts, *torch.tensor(codes).unbind(1))
    return splits


def batches(count: int, batch: int, seed: int, epoch: int, done: int = 0) -> Iterator[Tensor]:
    """The questions of each batch of an epoch, (batch,) int64, without the first `done` batches.

    The order depends on seed and epoch alone, so that a run that goes on in the middle of an epoch goes on as it would
    have. What is left over at the end of an epoch and is no whole batch is left out."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    for start in range(done * batch, count - batch + 1, batch):
        yield order[start : start + batch]


def _read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    rows = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                row = json.loads(line)
                if not isinstance(row, dict) or not all(isinstance(row.get(column), str) for column in COLUMNS):
                    raise UserError(f"{path}, line {number}: not an object of the texts {', '.join(COLUMNS)}")
                rows.append((number, row))
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file; `generate` makes a dataset") from error
    except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8, or nested too deeply
        raise UserError(f"{path}, after line {len(rows)}: not JSON lines in UTF-8: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    return rows
