"""Models of published work that no package has, written anew from how they are described."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _MicroTCNBlock(nn.Module):
    def __init__(self, inputs: int, channels: int, kernel: int, dilation: int, conditions: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, channels, kernel, dilation=dilation, bias=False)
        self.norm = nn.BatchNorm1d(channels, affine=False)
        self.film = nn.Linear(conditions, 2 * channels)
        self.relu = nn.PReLU(channels)
        self.res = nn.Conv1d(inputs, channels, 1, groups=inputs, bias=False)

    def forward(self, x: Tensor, conditions: Tensor) -> Tensor:
        gamma, beta = self.film(conditions).unsqueeze(-1).chunk(2, dim=1)
        y = self.relu(self.norm(self.conv(x)) * gamma + beta)
        skipped = self.res(x)
        start = (skipped.shape[-1] - y.shape[-1]) // 2
        return y + skipped[..., start : start + y.shape[-1]]


class MicroTCN(nn.Module):
    """Steinmetz and Reiss, "Efficient neural networks for real-time modeling of analog dynamic range compression"
    (2022): a few dilated convolutions, each with BatchNorm without affine, FiLM of the device's knobs and PReLU."""

    def __init__(self, blocks: int, channels: int, kernel: int = 13, growth: int = 10, knobs: int = 2) -> None:
        super().__init__()
        self.knobs = nn.Sequential(*(
            layer for a, b in ((knobs, 16), (16, 32), (32, 32)) for layer in (nn.Linear(a, b), nn.ReLU())
        ))  # fmt: skip
        self.blocks = nn.ModuleList(
            _MicroTCNBlock(channels if n else 1, channels, kernel, growth**n, 32) for n in range(blocks)
        )
        self.output = nn.Conv1d(channels, 1, 1)

    def forward(self, x: Tensor, knobs: Tensor) -> Tensor:
        """x: (N, 1, samples); knobs: (N, 2)."""
        conditions = self.knobs(knobs)
        for block in self.blocks:
            x = block(x, conditions)
        return torch.tanh(self.output(x))


class _PDEBlock(nn.Module):
    def __init__(self, inputs: int, channels: int, conditions: int, norm: bool) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, inputs) if norm else nn.Identity()
        self.norm2 = nn.GroupNorm(8, channels) if norm else nn.Identity()
        self.conv1 = nn.Conv2d(inputs, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.cond_emb = nn.Linear(conditions, 2 * channels)
        self.shortcut = nn.Conv2d(inputs, channels, 1) if inputs != channels else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.gelu(self.norm1(x)))
        scale, shift = self.cond_emb(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        return self.conv2(F.gelu(h)) + self.shortcut(x)


class PDEUNet(nn.Module):
    """Gupta and Brandstetter, "Towards multi-spatiotemporal-scale generalized PDE modeling" (2022): a U-Net of gelu
    blocks, each scaled and shifted by the time step and the forcing, with GroupNorm or without a norm."""

    def __init__(self, channels: int, norm: bool, fields: int = 3, conditions: int = 2) -> None:
        super().__init__()
        c, embedded = channels, 4 * channels
        self.emb = nn.Sequential(nn.Linear(conditions, embedded), nn.GELU(), nn.Linear(embedded, embedded))
        self.image_proj = nn.Conv2d(fields, c, 3, padding=1)
        self.down = nn.ModuleList([_PDEBlock(c, c, embedded, norm), _PDEBlock(c, 2 * c, embedded, norm)])
        self.downsample = nn.Conv2d(c, c, 3, stride=2, padding=1)
        self.middle = nn.ModuleList(_PDEBlock(2 * c, 2 * c, embedded, norm) for _ in range(2))
        self.upsample = nn.ConvTranspose2d(2 * c, c, 4, stride=2, padding=1)
        self.up = _PDEBlock(2 * c, c, embedded, norm)
        self.norm = nn.GroupNorm(8, c) if norm else nn.Identity()
        self.final = nn.Conv2d(c, fields, 3, padding=1)

    def forward(self, x: Tensor, conditions: Tensor) -> Tensor:
        """x: (N, fields, H, W); conditions: (N, conditions)."""
        emb = self.emb(conditions)
        wide = self.down[0](self.image_proj(x), emb)
        h = self.down[1](self.downsample(wide), emb)
        for block in self.middle:
            h = block(h, emb)
        h = self.up(torch.cat((self.upsample(h), wide), dim=1), emb)
        return self.final(F.gelu(self.norm(h)))


class _ClevrBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels + 2, channels, 1)  # two coordinates beside the features
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels, affine=False)

    def forward(self, x: Tensor, gamma: Tensor, beta: Tensor, places: Tensor) -> Tensor:
        x = F.relu(self.proj(torch.cat((x, places), dim=1)))
        y = self.norm(self.conv(x))
        gamma, beta = gamma[:, :, None, None].expand_as(y), beta[:, :, None, None].expand_as(y)
        return x + F.relu(gamma * y + beta)


class Clevr(nn.Module):
    """Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer" (2018): the residual blocks, on features
    of 14x14, and the classifier's first layers; gamma and beta of all blocks are made of the question's embedding."""

    def __init__(self, channels: int, blocks: int = 4, words: int = 4096, features: int = 256) -> None:
        super().__init__()
        self.film = nn.Linear(words, 2 * blocks * channels)
        self.stem = nn.Conv2d(features, channels, 3, padding=1)
        self.blocks = nn.ModuleList(_ClevrBlock(channels) for _ in range(blocks))
        self.head = nn.Conv2d(channels, 2 * channels, 1)

    def forward(self, features: Tensor, question: Tensor) -> Tensor:
        """features: (N, features, H, W); question: (N, words)."""
        factors = self.film(question).chunk(2 * len(self.blocks), dim=1)
        rows, columns = (torch.linspace(-1, 1, size, device=features.device) for size in features.shape[2:])
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).expand(len(features), -1, -1, -1)
        x = F.relu(self.stem(features))
        for block, gamma, beta in zip(self.blocks, factors[::2], factors[1::2], strict=True):
            x = block(x, 1 + gamma, beta, places)
        return F.relu(self.head(x)).amax((2, 3))
