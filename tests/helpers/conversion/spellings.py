"""The ways in which FiLM after a convolution is written, each as one line of a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

K = 6  # channels of every convolution


def tall(t):
    return t[..., None, None]


@dataclass(frozen=True)
class Spelling:
    """`write(v, g, b, e)` is FiLM of a convolution's output v, with g, b (N, K) and e (N, 2 K); `order` is what must be
    found. With several operations behind the fused ones, `order` ends before them."""

    name: str
    write: Callable
    order: tuple[str, ...] = ("film",)
    modules: Callable[[], dict[str, nn.Module]] = field(default=dict)


def batch_norm(**options):
    bn = nn.BatchNorm2d(K, **options)
    nn.init.uniform_(bn.running_mean, -1, 1)
    for positive in (bn.running_var, bn.weight, bn.bias):
        if positive is not None:
            nn.init.uniform_(positive, 0.5, 2)
    return bn.eval()


def in_place(v, g, b, e):
    v = v * tall(g)
    v += tall(b)
    return F.relu(v, inplace=True)


def halves(v, g, b, e):
    beta, gamma = tall(e).chunk(2, dim=1)
    return gamma * v + beta


def sizes(v, g, b, e):
    shape = list(v.size())
    shape[2:] = [1, 1]
    return g.view(shape) * v + b.view(shape)


SPELLINGS = (
    Spelling("gamma first", lambda v, g, b, e: g[:, :, None, None] * v + b[:, :, None, None]),
    Spelling("gamma last", lambda v, g, b, e: v * tall(g) + tall(b)),
    Spelling("beta first", lambda v, g, b, e: tall(b) + v * tall(g)),
    Spelling("offset", lambda v, g, b, e: (1 + tall(g)) * v + tall(b)),
    Spelling("offset last", lambda v, g, b, e: v * (tall(g) + 1.0) + tall(b)),
    Spelling("addcmul", lambda v, g, b, e: torch.addcmul(tall(b), tall(g), v)),
    Spelling("addcmul method", lambda v, g, b, e: tall(b).addcmul(v, tall(g))),
    Spelling("torch.mul", lambda v, g, b, e: torch.add(torch.mul(v, tall(g)), tall(b))),
    Spelling("methods", lambda v, g, b, e: v.mul(tall(g)).add_(tall(b))),
    Spelling("unsqueeze", lambda v, g, b, e: v * g.unsqueeze(-1).unsqueeze(-1) + b.unsqueeze(2).unsqueeze(3)),
    Spelling("view", lambda v, g, b, e: v * g.view(-1, K, 1, 1) + b.reshape(b.shape[0], K, 1, 1)),
    Spelling("view by sizes", sizes),
    Spelling("expand_as", lambda v, g, b, e: tall(g).expand_as(v) * v + tall(b).expand_as(v)),
    Spelling("view by one size", lambda v, g, b, e: g.view(v.size(0), -1, 1, 1) * v + b.view(v.shape[0], K, 1, 1)),
    Spelling("offset behind expand_as", lambda v, g, b, e: (1 + tall(g).expand_as(v)) * v + tall(b).expand_as(v) * 2),
    Spelling("expand", lambda v, g, b, e: tall(g).expand(-1, -1, *v.shape[2:]) * v + tall(b).expand(v.shape)),
    Spelling("chunk, beta first", halves),
    Spelling("split", lambda v, g, b, e: tall(e.split(K, 1)[0]) * v + tall(e.split(K, 1)[1])),
    Spelling("slices", lambda v, g, b, e: tall(e[:, :K]) * v + tall(e[:, K:])),
    Spelling("scale only", lambda v, g, b, e: v * tall(g.sigmoid()), ("scale",)),
    Spelling("shift only", lambda v, g, b, e: v + tall(b), ("shift",)),
    Spelling("shift, then scale", lambda v, g, b, e: (v + tall(b)) * tall(g)),
    Spelling("division", lambda v, g, b, e: (v - tall(b)) / tall(g.exp())),
    Spelling("a constant", lambda v, g, b, e: v * tall(g) * 0.5 + tall(b), ("scale", "film")),
    Spelling("one for all samples", lambda v, g, b, e: v * tall(g[0]) + tall(b[:1])),
    Spelling("in place", in_place, ("film", "relu")),
    Spelling("activation first", lambda v, g, b, e: tall(g) * torch.relu(v) + tall(b), ("relu", "film")),
    Spelling("activation last", lambda v, g, b, e: F.relu(tall(g) * v + tall(b)), ("film", "relu")),
    Spelling("both", lambda v, g, b, e: F.relu(tall(g) * v.tanh() + tall(b)), ("tanh", "film")),
    Spelling("leaky_relu", lambda v, g, b, e: tall(g) * F.leaky_relu(v, 0.3) + tall(b), ("leaky_relu", "film")),
    Spelling("silu", lambda v, g, b, e: tall(g) * F.silu(v) + tall(b), ("silu", "film")),
    Spelling("gelu", lambda v, g, b, e: tall(g) * F.gelu(v) + tall(b), ("gelu", "film")),
    Spelling(
        "gelu's tanh", lambda v, g, b, e: F.gelu(tall(g) * v + tall(b), approximate="tanh"), ("film", "gelu_tanh")
    ),
    Spelling("sigmoid", lambda v, g, b, e: (tall(g) * v + tall(b)).sigmoid(), ("film", "sigmoid")),
    Spelling("tanh", lambda v, g, b, e: torch.tanh(tall(g) * v + tall(b)), ("film", "tanh")),
    Spelling("mish", lambda v, g, b, e: F.mish(tall(g) * v + tall(b)), ("film", "mish")),
    Spelling("elu", lambda v, g, b, e: F.elu(tall(g) * v + tall(b)), ("film", "elu")),
    Spelling("elu in place", lambda v, g, b, e: tall(g) * F.elu(v, 1.0, True) + tall(b), ("elu", "film")),
    Spelling("celu with elu's alpha", lambda v, g, b, e: tall(g) * torch.celu(v) + tall(b), ("elu", "film")),
    *(
        Spelling(
            f"nn.{type(module).__name__}",
            lambda v, g, b, e, act: tall(g) * act(v) + tall(b),
            (name, "film"),
            lambda module=module: {"act": module},
        )
        for name, module in (
            ("relu", nn.ReLU(inplace=True)), ("leaky_relu", nn.LeakyReLU(0.2)), ("silu", nn.SiLU()),
            ("gelu_tanh", nn.GELU("tanh")), ("sigmoid", nn.Sigmoid()), ("tanh", nn.Tanh()), ("mish", nn.Mish()),
            ("elu", nn.ELU(inplace=True)), ("elu", nn.CELU()),
        )
    ),
    Spelling("residual", lambda v, g, b, e: F.relu(tall(g) * v + tall(b) + F.pad(tall(b), (0, 4, 0, 5)))),
    Spelling("dropout off", lambda v, g, b, e: tall(g) * F.dropout(F.relu(v), 0.5, False) + tall(b),
             ("relu", "dropout", "film")),
    Spelling("BatchNorm, FiLM, relu", lambda v, g, b, e, bn: F.relu(tall(g) * bn(v) + tall(b)),
             ("batch_norm", "film", "relu"), lambda: {"bn": batch_norm()}),
    Spelling("BatchNorm without affine", lambda v, g, b, e, bn: tall(g) * bn(v) + tall(b),
             ("batch_norm", "film"), lambda: {"bn": batch_norm(affine=False)}),
    Spelling("BatchNorm, relu, FiLM", lambda v, g, b, e, bn: tall(g) * bn(v).relu() + tall(b),
             ("batch_norm", "relu", "film"), lambda: {"bn": batch_norm()}),
    Spelling("relu, BatchNorm, FiLM", lambda v, g, b, e, bn: tall(g) * bn(v.relu()) + tall(b),
             ("relu", "batch_norm", "film"), lambda: {"bn": batch_norm()}),
    Spelling("FiLM, BatchNorm, relu", lambda v, g, b, e, bn: bn(tall(g) * v + tall(b)).relu(),
             ("film", "batch_norm", "relu"), lambda: {"bn": batch_norm()}),
    Spelling("BatchNorm twice", lambda v, g, b, e, bn, bn2: tall(g) * bn2(F.silu(bn(v))) + tall(b),
             ("batch_norm", "silu", "batch_norm", "film"), lambda: {"bn": batch_norm(), "bn2": batch_norm()}),
)  # fmt: skip


class Written(nn.Module):
    """A convolution, and FiLM as a spelling writes it."""

    def __init__(self, spelling: Spelling, **options) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, K, 3, **options)
        self.others = nn.ModuleDict(spelling.modules())
        self.write = spelling.write

    def forward(self, x, g, b, e):
        return self.write(self.conv(x), g, b, e, **dict(self.others.items()))


class Together(nn.Module):
    """Several modules on the same inputs; their outputs as a list. One capture of the graph serves them all."""

    def __init__(self, modules) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, *inputs):
        return [part(*inputs) for part in self.parts]


def inputs(batch: int = 3, dtype: torch.dtype = torch.float64, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, 3, 8, 7), (batch, K), (batch, K), (batch, 2 * K))
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
