"""A block as it is met in the wild, and inputs for it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers.conversion.spellings import K, batch_norm, tall


class Block(nn.Module):
    """conv -> BatchNorm -> FiLM -> relu, with gamma and beta from a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, K, 3, padding=1)
        self.norm = batch_norm()
        self.film = nn.Linear(5, 2 * K)

    def forward(self, x, e):
        gamma, beta = tall(self.film(e)).chunk(2, 1)
        return F.relu((1 + gamma) * self.norm(self.conv(x)) + beta)


def block_inputs(batch: int = 2, dtype: torch.dtype = torch.float32, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(s, generator=generator).to(dtype) for s in ((batch, 3, 8, 7), (batch, 5)))
