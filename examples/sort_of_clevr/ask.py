"""Answers one question about one image from a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from . import checkpoint
from .data import load_image
from .network import restore_network


def ask(image: Path, question: str, checkpoint_path: Path) -> list[tuple[str, float]]:
    """The answers with their probabilities, the likeliest first.

    Raises UserError for an image or checkpoint that cannot be read, and a question that the network cannot take."""
    network, vocabulary = restore_network(checkpoint.load(checkpoint_path))
    prepared = network.encoder.prepare([question])
    with torch.no_grad():
        scores = network(load_image(image)[None], prepared, torch.zeros(1, dtype=torch.int64))
    found = zip(vocabulary.answers, scores[0].softmax(0).tolist(), strict=True)
    return sorted(found, key=lambda pair: -pair[1])
