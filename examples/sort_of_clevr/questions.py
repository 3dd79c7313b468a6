"""Questions in plain English about a scene, of six kinds, and their answers."""

from __future__ import annotations

import random
import re
from dataclasses import asdict, dataclass

from .scenes import COLOURS, MIDDLE, SHAPES, Object

ANSWERS = (*SHAPES, "yes", "no", *(str(count) for count in range(1, len(COLOURS) + 1)))
NON_RELATIONAL = ("shape", "left-right", "top-bottom")  # kinds that ask about one object
RELATIONAL = ("closest", "furthest", "count")  # kinds for which objects are compared
KINDS = NON_RELATIONAL + RELATIONAL
# Of the wordings about a side, two ask for the near one and one for the far one: with as many of both, neither the word
# nor the place alone would say anything about the answer, and nothing would tell training where to begin.
TEMPLATES = {
    "shape": (
        "what shape is the {colour} object?",
        "what is the shape of the {colour} thing?",
        "is the {colour} object a circle or a square?",
    ),
    "left-right": (
        "is the {colour} object on the left?",
        "is the {colour} thing in the left half of the image?",
        "does the {colour} object lie on the right side?",
    ),
    "top-bottom": (
        "is the {colour} object at the top?",
        "is the {colour} thing in the top half of the image?",
        "does the {colour} object lie at the bottom?",
    ),
    "closest": (
        "what shape is the object closest to the {colour} object?",
        "which shape is nearest to the {colour} thing?",
        "what is the shape of the nearest neighbour of the {colour} object?",
    ),
    "furthest": (
        "what shape is the object furthest from the {colour} object?",
        "which shape is farthest from the {colour} thing?",
        "what is the shape of the thing most distant from the {colour} object?",
    ),
    "count": (
        "how many objects have the shape of the {colour} object?",
        "counting the {colour} thing too, how many things have its shape?",
        "what is the number of objects shaped like the {colour} one, itself included?",
    ),
}
FAR_SIDES = {"right", "bottom"}  # words of questions to which "yes" means beyond the middle


@dataclass(frozen=True)
class Question:
    """A question, its answer (one of ANSWERS) and its kind (one of KINDS)."""

    question: str
    answer: str
    kind: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def words(question: str) -> list[str]:
    """The question's words in lower case, without punctuation."""
    return re.findall(r"\w+", question.lower())


def vocabulary() -> list[str]:
    """Every word that a question can have, in alphabetical order."""
    texts = (text for kind in TEMPLATES.values() for text in kind)
    return sorted({word for text in texts for colour in COLOURS for word in words(text.format(colour=colour))})


def ask(kind: str, item: Object, scene: list[Object], rng: random.Random) -> Question | None:
    """A question of that kind about that object, in words drawn by `rng`; None where two answers would be right."""
    text = rng.choice(TEMPLATES[kind]).format(colour=item.colour)
    answer = _answer(kind, item, scene, text)
    return None if answer is None else Question(text, answer, kind)


def ask_many(scene: list[Object], count: int, rng: random.Random) -> list[Question]:
    """`count` questions about one object and `count` about several; no two of one kind about the same object."""
    asked: list[Question] = []
    for kinds in (NON_RELATIONAL, RELATIONAL):
        pairs = [(kind, item) for kind in kinds for item in scene]
        rng.shuffle(pairs)
        possible = (ask(kind, item, scene, rng) for kind, item in pairs)
        asked += [question for question in possible if question is not None][:count]
    return asked


def _answer(kind: str, item: Object, scene: list[Object], text: str) -> str | None:
    if kind == "shape":
        return item.shape
    if kind in ("left-right", "top-bottom"):
        place = item.x if kind == "left-right" else item.y
        if place == MIDDLE:
            return None
        return "yes" if (place > MIDDLE) == bool(FAR_SIDES & set(words(text))) else "no"
    if kind == "count":
        return str(sum(other.shape == item.shape for other in scene))
    others = [other for other in scene if other is not item]
    best = (min if kind == "closest" else max)(other.distance(item) for other in others)
    shapes = {other.shape for other in others if other.distance(item) == best}
    return shapes.pop() if len(shapes) == 1 else None
