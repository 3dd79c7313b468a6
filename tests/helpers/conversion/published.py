"""Layers and blocks in which published models have FiLM, as they write them. A block is a function of the modules in
`m` and of inputs, with what is made of them, in `t`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

C, K, N, WORDS = 4, 8, 2, 5  # channels in and out, samples, what gamma and beta are made of


def tall(t, dims=2):
    return t[(..., *[None] * dims)]


def film(h, t, dims=2):
    """As in ADM, Imagen and their kin."""
    return h * (1 + tall(t.scale, dims)) + tall(t.shift, dims)


def modulate(h, t):
    """DiT's."""
    return h * (1 + t.scale.unsqueeze(1)) + t.shift.unsqueeze(1)


def group_norm():
    return nn.GroupNorm(2, K)


class GroupNorm32(nn.GroupNorm):
    """Of guided-diffusion."""

    def forward(self, x):
        return super().forward(x.float()).type(x.dtype)


class Block(nn.Module):
    """Of denoising-diffusion-pytorch: projection, norm, scale and shift where there are any, SiLU."""

    def __init__(self):
        super().__init__()
        self.proj, self.norm, self.act = nn.Conv2d(C, K, 3, padding=1), group_norm(), nn.SiLU()

    def forward(self, x, scale_shift=None):
        x = self.norm(self.proj(x))
        if scale_shift is not None:
            scale, shift = scale_shift
            x = x * (scale + 1) + shift
        return self.act(x)


class RMSNorm(nn.Module):
    """Of denoising-diffusion-pytorch, for a sequence, a picture or a volume."""

    def __init__(self, dims):
        super().__init__()
        self.scale, self.g = K**0.5, nn.Parameter(torch.ones(1, K, *[1] * dims))

    def forward(self, x):
        return F.normalize(x, dim=1) * self.g * self.scale


class LayerNorm2d(nn.LayerNorm):
    """Of ConvNeXt."""

    def forward(self, x):
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class ConditionalBatchNorm(nn.Module):
    """Of BigGAN: gain and bias are made of the class."""

    def __init__(self):
        super().__init__()
        self.gain, self.bias = nn.Linear(WORDS, K, bias=False), nn.Linear(WORDS, K, bias=False)
        self.register_buffer("stored_mean", torch.zeros(K))
        self.register_buffer("stored_var", torch.ones(K))

    def forward(self, x, y):
        gain = (1 + self.gain(y)).view(y.size(0), -1, 1, 1)
        bias = self.bias(y).view(y.size(0), -1, 1, 1)
        out = F.batch_norm(x, self.stored_mean, self.stored_var, None, None, self.training, 0.1, 1e-4)
        return out * gain + bias


class AdaIN(nn.Module):
    """Of StarGAN v2."""

    def __init__(self):
        super().__init__()
        self.norm, self.fc = nn.InstanceNorm2d(K, affine=False), nn.Linear(WORDS, 2 * K)

    def forward(self, x, s):
        h = self.fc(s)
        h = h.view(h.size(0), h.size(1), 1, 1)
        gamma, beta = torch.chunk(h, chunks=2, dim=1)
        return (1 + gamma) * self.norm(x) + beta


class Spade(nn.Module):
    """Of SPADE: gamma and beta are pictures."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm
        self.gamma, self.beta = (nn.Conv2d(C, K, 3, padding=1) for _ in range(2))

    def forward(self, x, picture):
        return self.norm(x) * (1 + self.gamma(picture)) + self.beta(picture)


def conv1d_block(m, t):
    """Of Diffusion Policy."""
    return F.mish(m.norm(m.conv1d(t.sequence)))


def statistics_of(style):
    return style.mean((2, 3), keepdim=True), style.std((2, 3), keepdim=True)


def adain_of_features(m, t):
    """Huang and Belongie's: mean and deviation of one picture's features, given to another's."""
    h = F.relu(t.features)
    (mean, std), (own_mean, own_std) = statistics_of(m.other(t.other)), statistics_of(h)
    return (h - own_mean) / own_std * std + mean


def wavenet(m, t):
    h = film(m.conv1d(t.sequence), t, 1)
    return torch.tanh(h[:, : K // 2]) * torch.sigmoid(h[:, K // 2 :])


def wavegrad(m, t):
    shift, scale = m.film(t.sequence + t.emb[:, :1, None]).chunk(2, dim=1)
    return F.leaky_relu(shift + scale * m.conv1d(t.sequence), 0.2)


def convnext(m, t):
    h = m.norm(m.conv(t.picture).permute(0, 2, 3, 1))
    return (h * (1 + t.scale[:, None, None]) + t.shift[:, None, None]).permute(0, 3, 1, 2)


def patches(m, t):
    return modulate(m.norm(m.conv(t.picture).flatten(2).transpose(1, 2)), t)


def written_rms(m, t):
    h = m.linear(t.tokens)
    return modulate(h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6) * m.g, t)


def residual_block(m, t):
    return t.tokens + m.linear(F.gelu(m.linear(m.norm(t.tokens))))


def rotary(m, t):
    q = m.norm(m.linear(t.tokens)).unflatten(-1, (2, -1)).transpose(1, 2)
    angle = torch.arange(q.shape[2], device=q.device)[:, None].float() * t.emb[:, None, :1, None].cos()
    half = torch.cat((-q[..., 2:], q[..., :2]), -1)
    return q * angle.cos() + half * angle.sin()


def squeeze_and_excite(m, t):
    h = m.batch_norm(t.features)
    return h * m.linear(h.mean((2, 3))).sigmoid()[..., None, None]


def scaled_by_its_mean(m, t):
    h = m.linear(t.tokens)
    mean = h.mean(1, keepdim=True)
    return h * m.linear(mean) + m.linear(mean)


def brought_back(m, t):
    """RevIN's: a series is normalised, and what is made of it is given its mean and deviation again."""
    mean, std = t.tokens.mean(1, keepdim=True), t.tokens.std(1, keepdim=True)
    return m.linear((t.tokens - mean) / std) * std + mean


def weighted_loss(m, t):
    return (F.mse_loss(m.norm(t.tokens), t.tokens, reduction="none") * t.emb[:, :1, None]).mean()
