"""FiLM after a convolution that must be listed and left alone, with the word its reason must hold; and what is not
FiLM at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers.conversion.spellings import K, tall


@dataclass(frozen=True)
class Refusal:
    """`write(m, x, g, b, e)` with the modules in `m`, of which `m["conv"]` is the convolution."""

    name: str
    write: Callable
    word: str  # of the reason; "" where nothing must be listed
    modules: Callable[[], dict[str, nn.Module]] = field(default=dict)


def film(v, g, b):
    return tall(g) * v + tall(b)


def through(**modules):
    """conv -> the modules -> FiLM."""

    def write(m, x, g, b, e):
        v = m["conv"](x)
        for name in modules:
            v = m[name](v)
        return film(v, g, b)

    return {"write": write, "modules": lambda: {name: make() for name, make in modules.items()}}


def position_map(b):
    return F.pad(tall(b), (0, 4, 0, 5))  # (N, K, 6, 5), as the convolution's result


def changed(m, x, g, b, e):
    x = x * 1
    v = m["conv"](x)
    x.add_(1)
    return film(v, g, b)


def changed_view(m, x, g, b, e):
    g = g * 1
    v = m["conv"](x) * tall(g)
    g.unsqueeze(0)[0].mul_(2)
    return v + tall(b)


def without_gradient(m, x, g, b, e):
    with torch.no_grad():
        v = m["conv"](x)
    return film(v, g, b)


def elsewhere(m, x, g, b, e):
    v = m["conv"](x)
    return film(F.relu(v), g, b) + v


def squeeze_and_excite(m, x, g, b, e):
    v = m["conv"](x)
    return v * v.mean((2, 3), keepdim=True).sigmoid()


def unbiased(m, x, g, b, e):
    v = m["conv"](x)
    return film((v - v.mean(1, keepdim=True)) / (v.var(1, keepdim=True) + 1e-5).sqrt(), g, b)


def normalised_elsewhere(m, x, g, b, e):
    v = m["norm"](m["conv"](x))
    return film(F.relu(v), g, b) + v


def film_by_maps(v, g, b):
    return v * position_map(g) + position_map(b)


def norm_without_gradient(m, x, g, b, e):
    v = m["conv"](x)
    with torch.no_grad():
        v = m["norm"](v)
    return film(v, g, b)


def input_changed(m, x, g, b, e):
    v = m["conv"](x)
    h = m["norm"](v)
    v.add_(1)
    return film(h, g, b)


def weight_changed(m, x, g, b, e):
    weight = m["norm"].weight * 1
    v = F.group_norm(m["conv"](x), 2, weight)
    weight.mul_(2)
    return film(v, g, b)


def in_place(m, x, g, b, e):
    v = m["conv"](x)
    v -= v.mean(1, keepdim=True)
    return film(v * torch.rsqrt(v.pow(2).mean(1, keepdim=True) + 1e-5), g, b)


def statistics_read(m, x, g, b, e):
    v = m["norm"](m["conv"](x))
    g = g + m["norm"].running_mean
    return film(v, g, b)


def turned(m, x, g, b, e):
    v = m["conv"](x)  # as high as it is wide
    return film(m["norm"](v.permute(0, 2, 3, 1)).permute(0, 3, 2, 1), g, b)


def permuted(m, x, g, b, e):
    v = m["conv"](x)
    return film(m["norm"](v.transpose(1, 2)).transpose(1, 2), g, b)


def bounded(m, x, g, b, e):
    v = m["conv"](x).clamp(-100, 100)
    return film(v * torch.rsqrt(v.pow(2).mean(1, keepdim=True) + 1e-5), g, b)


REFUSED = (
    Refusal("LayerNorm", **through(norm=lambda: nn.LayerNorm((6, 5))), word="over dimensions, or with weights"),
    Refusal("InstanceNorm", **through(norm=lambda: nn.InstanceNorm2d(K, track_running_stats=True)),
            word="running statistics"),
    Refusal("an unbiased variance", unbiased, "an unbiased variance"),
    Refusal("GroupNorm, prelu", **through(norm=lambda: nn.GroupNorm(2, K), act=nn.PReLU), word="prelu is not"),
    Refusal("GroupNorm, two activations", **through(norm=lambda: nn.GroupNorm(2, K), act=nn.ReLU, again=nn.Tanh),
            word="two activations"),
    Refusal("GroupNorm used elsewhere", normalised_elsewhere, "the norm's output is used elsewhere",
            lambda: {"norm": nn.GroupNorm(2, K)}),
    Refusal("GroupNorm, map", lambda m, x, g, b, e: film_by_maps(m["norm"](m["conv"](x)), g, b),
            "varies over positions", lambda: {"norm": nn.GroupNorm(2, K)}),
    Refusal("GroupNorm, dtypes", lambda m, x, g, b, e: film(m["norm"](m["conv"](x)), g.double(), b),
            "torch.float64 of the norm's", lambda: {"norm": nn.GroupNorm(2, K)}),
    Refusal("GroupNorm without gradients", norm_without_gradient, "gradient modes",
            lambda: {"norm": nn.GroupNorm(2, K)}),
    Refusal("the norm's input changed in place", input_changed, "changed in place",
            lambda: {"norm": nn.GroupNorm(2, K)}),
    Refusal("the norm's weight changed in place", weight_changed, "changed in place",
            lambda: {"norm": nn.GroupNorm(2, K)}),
    Refusal("in place of its input", in_place, "its own input in place"),
    Refusal("running statistics read in between", statistics_read, "is read before FiLM",
            lambda: {"norm": nn.BatchNorm2d(K)}),
    Refusal("SyncBatchNorm", **through(norm=lambda: nn.SyncBatchNorm(K)), word="all processes"),
    Refusal("turned between permutations", turned, "by a formula",
            lambda: {"conv": nn.Conv2d(3, K, (4, 3)), "norm": nn.LayerNorm(K)}),
    Refusal("permuted GroupNorm", permuted, "over dimensions, or with weights", lambda: {"norm": nn.GroupNorm(2, 6)}),
    Refusal("bounds that show with great values alone", bounded, "by a formula"),
    Refusal("dropout", **through(drop=lambda: nn.Dropout(0.3)), word="active dropout"),
    Refusal("functional dropout", lambda m, x, g, b, e: film(F.dropout2d(m["conv"](x), 0.3), g, b), "active dropout"),
    Refusal("PReLU", **through(act=nn.PReLU), word="prelu is not"),
    Refusal("ELU of its own alpha", **through(act=lambda: nn.ELU(0.5)), word="elu with alpha = 0.5 is not"),
    Refusal("celu of its own alpha", lambda m, x, g, b, e: film(F.celu(m["conv"](x), 2.0), g, b), "alpha = 2.0 is not"),
    Refusal("two activations", **through(act=nn.ReLU, again=nn.Tanh), word="two activations"),
    Refusal("map", lambda m, x, g, b, e: m["conv"](x) * position_map(g) + position_map(b), "varies over positions"),
    Refusal("map by addcmul", lambda m, x, g, b, e: torch.addcmul(position_map(b), m["conv"](x), position_map(g)),
            "varies over positions"),
    Refusal("used elsewhere", elsewhere, "used elsewhere"),
    Refusal("squeeze and excite", squeeze_and_excite, "used elsewhere"),
    Refusal("input changed in place", changed, "changed in place"),
    Refusal("gamma changed in place", changed_view, "changed in place"),
    Refusal("no_grad", without_gradient, "gradient modes"),
    Refusal("dtypes", lambda m, x, g, b, e: film(m["conv"](x), g.double(), b), "torch.float64 of the convolution's"),
    Refusal("transposed", lambda m, x, g, b, e: film(m["conv"](x), g, b), "transposed",
            lambda: {"conv": nn.ConvTranspose2d(3, K, 3)}),
    Refusal("three dimensions",
            lambda m, x, g, b, e: tall(g)[..., None] * m["conv"](x[:, :, None]) + tall(b)[..., None], "3d",
            lambda: {"conv": nn.Conv3d(3, K, (1, 3, 3))}),
    Refusal("complex", lambda m, x, g, b, e: film(m["conv"](x.cfloat()), g.cfloat(), b.cfloat()), "torch.complex64",
            lambda: {"conv": nn.Conv2d(3, K, 3, dtype=torch.cfloat)}),
)  # fmt: skip
NOT_FILM = (
    Refusal("residual", lambda m, x, g, b, e: F.relu(m["conv"](x)) + position_map(b), ""),
    Refusal("gate", lambda m, x, g, b, e: m["conv"](x).tanh() * position_map(g).sigmoid(), ""),
    Refusal("constants", lambda m, x, g, b, e: m["conv"](x) * 0.5 + 1, ""),
    Refusal("depth of each sample", lambda m, x, g, b, e: m["conv"](x) * g[:, :1, None, None], ""),
    Refusal("pooled", lambda m, x, g, b, e: film(F.avg_pool2d(m["conv"](x), 2), g, b), ""),
    Refusal("batch of FiLMs", lambda m, x, g, b, e: film(m["conv"](x[:1]), g, b), ""),
    Refusal("linear", lambda m, x, g, b, e: film(x[:, :1] + tall(e[:, :1]), g, b), ""),
)


class Refused(nn.Module):
    def __init__(self, refusal: Refusal) -> None:
        super().__init__()
        self.m = nn.ModuleDict({"conv": nn.Conv2d(3, K, 3), **refusal.modules()})
        self.write = refusal.write

    def forward(self, x, g, b, e):
        return self.write(self.m, x, g, b, e)
