"""Models whose sites norm_film serves."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .published import K, LayerNorm2d, RMSNorm, tall

WORDS = 5


class Sites(nn.Module):
    """A convolution, and for each norm: norm, FiLM, silu, and the other way round."""

    def __init__(self, norms: dict[str, nn.Module]) -> None:
        super().__init__()
        self.conv, self.norms = nn.Conv2d(3, K, 3, padding=1), nn.ModuleDict(norms)
        self.film = nn.Linear(WORDS, 2 * K)

    def forward(self, x, words):
        h = self.conv(x)
        gamma, beta = tall(self.film(words)).chunk(2, dim=1)
        found = []
        for i, (name, norm) in enumerate(self.norms.items()):
            v = norm(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if name == "tokens" else norm(h)
            found.append(F.silu(v * (1 + gamma) + beta) if i % 2 else F.mish(v) * gamma + beta)
            if name != "tokens":
                found.append(torch.tanh(norm(h * 2)))
        return found


def all_norms() -> dict[str, nn.Module]:
    return {
        "group": nn.GroupNorm(2, K), "instance": nn.InstanceNorm2d(K, affine=True), "batch": nn.BatchNorm2d(K),
        "layer": LayerNorm2d(K), "l2": RMSNorm(2), "tokens": nn.RMSNorm(K),
    }  # fmt: skip


def draw(batch=2, size=8, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in ((batch, 3, size, 7), (batch, WORDS))]


def perturbed(model: nn.Module) -> nn.Module:
    """Weights and biases of norms that are no longer ones and zeros."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


class Llama(nn.Module):
    """The norm of language models, which computes in float32."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(K))

    def forward(self, x):
        h = x.to(torch.float32)
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * h.to(x.dtype)


class AdaLN(nn.Module):
    """Of DiT: a residual around norm, scale and shift."""

    def __init__(self, norm):
        super().__init__()
        self.norm, self.linear, self.film = norm, nn.Linear(K, K), nn.Linear(WORDS, 2 * K)

    def forward(self, x, words):
        shift, scale = self.film(F.silu(words)).chunk(2, dim=1)
        return x + self.linear(self.norm(x) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1))
