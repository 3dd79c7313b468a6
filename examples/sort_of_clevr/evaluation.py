"""How often the answers are right, by kind of question, and what is answered instead."""

from __future__ import annotations

import torch
from torch import Tensor

from .data import Split
from .model import Network
from .questions import KINDS, NON_RELATIONAL, RELATIONAL

BATCH = 256  # questions at once


def confusion(network: Network, split: Split, device: torch.device, answers: int) -> Tensor:
    """Counts of the split's questions by kind, right answer and given answer, (kinds, answers, answers) int64."""
    questions = network.encoder.prepare(split.texts).to(device)
    counts = torch.zeros(len(KINDS), answers, answers, dtype=torch.int64)
    for chosen in torch.arange(len(split)).split(BATCH):
        with torch.no_grad():
            given = network(*inputs_of(split, chosen, questions, device)).argmax(1).cpu()
        places = (split.kind[chosen], split.answer[chosen], given)
        counts.index_put_(places, torch.ones(len(chosen), dtype=torch.int64), accumulate=True)
    return counts


def inputs_of(split: Split, chosen: Tensor, questions: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """What the network takes for the chosen questions, (N,) int64; `questions` are the split's texts, prepared."""
    texts, which = split.text[chosen].unique(return_inverse=True)
    return split.images[split.image[chosen]].to(device), questions[texts.to(device)], which.to(device)


def accuracies(counts: Tensor) -> dict[str, float]:
    """The fraction of right answers for each kind, and for the non-relational and the relational kinds together."""
    right, asked = counts.diagonal(dim1=1, dim2=2).sum(1), counts.sum((1, 2))
    by_kind = dict(zip(KINDS, (right / asked.clamp_min(1)).tolist(), strict=True))
    for name, kinds in (("non-relational", NON_RELATIONAL), ("relational", RELATIONAL)):
        places = [KINDS.index(kind) for kind in kinds]
        by_kind[name] = (right[places].sum() / asked[places].sum().clamp_min(1)).item()
    return by_kind


def majority(train: Split, test: Split, answers: int) -> dict[str, float]:
    """The accuracies of giving every question the most frequent answer to its kind in `train`."""
    best = torch.zeros(len(KINDS), answers, dtype=torch.int64)
    best.index_put_((train.kind, train.answer), torch.ones_like(train.answer), accumulate=True)
    counts = torch.zeros(len(KINDS), answers, answers, dtype=torch.int64)
    places = (test.kind, test.answer, best.argmax(1)[test.kind])
    return accuracies(counts.index_put_(places, torch.ones_like(test.answer), accumulate=True))
