"""What makes numbers of a question: a small GRU that is trained along, or a pretrained sentence encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from .errors import UserError
from .questions import words

WORD_SIZE = 32  # features of a word's embedding
SIZE = 64  # features of a question, for the FiLM generators
LONGEST = 24  # words of a question, at most
PRETRAINED_SIZE = 256  # features of WordLlama's sentence embeddings


class GRUEncoder(nn.Module):
    """Word embeddings and a GRU, of which the question is the last state (as Perez et al., AAAI 2018, have it).

    The sum of the words is added to it: a GRU has forgotten a colour six words back before training has begun."""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        super().__init__()
        self.place = {word: place for place, word in enumerate(vocabulary, 1)}  # 0 stands behind the last word
        self.embedding = nn.Embedding(1 + len(vocabulary), WORD_SIZE, padding_idx=0)
        self.gru = nn.GRU(WORD_SIZE, SIZE, batch_first=True)
        self.word = nn.Linear(WORD_SIZE, SIZE)
        self.norm = nn.LayerNorm(SIZE)

    def prepare(self, questions: Sequence[str]) -> Tensor:
        """The questions' words as places in the vocabulary, (Q, LONGEST) int64.

        Raises UserError naming the words of a question that are not in the vocabulary."""
        rows = torch.zeros(len(questions), LONGEST, dtype=torch.int64)
        for row, question in zip(rows, questions, strict=True):
            found = words(question)
            unknown = [word for word in found if word not in self.place]
            if unknown:
                named = ", ".join(repr(word) for word in dict.fromkeys(unknown))
                noun = "word" if len(set(unknown)) == 1 else "words"
                raise UserError(f"I do not know the {noun} {named}; I know: {', '.join(self.place)}")
            if not 0 < len(found) <= LONGEST:
                raise UserError(f"a question has 1 to {LONGEST} words, this one has {len(found)}: {question!r}")
            row[: len(found)] = torch.tensor([self.place[word] for word in found])
        return rows

    def forward(self, rows: Tensor) -> Tensor:
        """rows (Q, L) int64 as `prepare` makes them; returns (Q, SIZE)."""
        lengths = (rows != 0).sum(1)
        embedded = self.embedding(rows[:, : int(lengths.max())])
        states, _ = self.gru(embedded)
        last = states[torch.arange(len(rows), device=rows.device), lengths - 1]
        return self.norm(last + self.word(embedded.sum(1)))


class PretrainedEncoder(nn.Module):
    """WordLlama's sentence embeddings, which stay as they are, and a trained layer behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(PRETRAINED_SIZE, SIZE)
        self.norm = nn.LayerNorm(SIZE)
        try:
            import wordllama
        except ImportError as error:
            raise UserError(
                f"--sentence-encoder needs the package wordllama: pip install wordllama ({error})"
            ) from error
        # Weights and tokenizer come with the package, but it looks for the tokenizer in its cache only: so this is it.
        self.embed = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True).embed

    def prepare(self, questions: Sequence[str]) -> Tensor:
        """The questions' embeddings, (Q, 256) float32 of length 1 (what no token is found in: of zeros)."""
        if not all(words(question) for question in questions):
            raise UserError("a question has at least one word")
        return torch.from_numpy(self.embed(list(questions), norm=True)).float()

    def forward(self, embeddings: Tensor) -> Tensor:
        """embeddings (Q, 256); returns (Q, SIZE)."""
        return self.norm(self.layer(embeddings))
