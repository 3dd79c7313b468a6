"""What a model may change in place around a convolution and its FiLM: `write(m, x, g, b)` with the modules and tensors
of `Around` in `m`, which gives one tensor or several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers.conversion.spellings import K, batch_norm, tall


@dataclass(frozen=True)
class Change:
    name: str
    write: Callable


def between(change, name=""):
    """`change` of the convolution's input before FiLM is reached."""

    def write(m, x, g, b):
        x = x * 1
        h = m.conv(x)
        change(x)
        return F.relu(h) * tall(g) + x.mean()

    return Change(name or change, write)


def of_parts(change):
    """`change(m, x, g, b)` of one of the tensors that the convolution or FiLM has read."""

    def write(m, x, g, b):
        x, g, b = x * 1, g * 1, b * 1
        w, bias = m.conv.weight * 1, m.conv.bias * 1
        h = F.conv2d(x, w, bias) * tall(g)
        change(w, bias, g, b)
        return h + tall(b)

    return write


@torch.library.custom_op("film_kernels_tests::double_", mutates_args=("x",))
def double_(x: torch.Tensor) -> None:
    x.mul_(2)


@torch.library.custom_op("film_kernels_tests::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@doubled.register_fake
def _(x):
    return torch.empty_like(x)


@torch.compiler.allow_in_graph
def of_the_user(x):
    return x * 2


def setitem(x):
    x[:, 0] = 0


def augmented(x):
    x += 1


def branch(change):
    return lambda x: torch.utils.checkpoint.checkpoint(change, x, use_reentrant=False)


INPUT = {
    "F.relu, inplace": lambda x: F.relu(x, inplace=True),
    "F.relu, True": lambda x: F.relu(x, True),
    "F.leaky_relu": lambda x: F.leaky_relu(x, 0.1, True),
    "F.silu": lambda x: F.silu(x, True),
    "F.elu": lambda x: F.elu(x, 1.0, True),
    "F.hardtanh": lambda x: F.hardtanh(x, -0.1, 0.1, True),
    "F.threshold": lambda x: F.threshold(x, 0.1, 0.0, True),
    "F.relu_": lambda x: F.relu_(x),
    "nn.ReLU": lambda x: nn.ReLU(True)(x),
    "mul_": lambda x: x.mul_(2),
    "torch.Tensor.mul_": lambda x: torch.Tensor.mul_(x, 2),
    "setitem": setitem,
    "+=": augmented,
    "data": lambda x: x.data.mul_(2),
    "detach": lambda x: x.detach().zero_(),
    "unbind": lambda x: x.unbind(0)[0].zero_(),
    "movedim": lambda x: x.movedim(1, -1).mul_(2),
    "swapaxes": lambda x: x.swapaxes(2, 3).mul_(2),
    "mT": lambda x: x.mT.mul_(2),
    "diagonal": lambda x: x.diagonal(0, 2, 3).zero_(),
    "unfold": lambda x: x.unfold(2, 2, 2).zero_(),
    "tensor_split": lambda x: torch.tensor_split(x, 2)[0].zero_(),
    "as_strided": lambda x: x.as_strided((3,), (1,)).fill_(7),
    "view of a view": lambda x: x.flatten(1).chunk(2, 1)[1].narrow(1, 0, 3).t().mul_(5),
    "contiguous": lambda x: x.contiguous().mul_(2),
    "to": lambda x: x.to(x.dtype).mul_(2),
    "dropout, off": lambda x: F.dropout(x, 0.5, False).mul_(2),
    "_foreach_mul_": lambda x: torch._foreach_mul_([x], 2.0),
    "out": lambda x: torch.mul(x, 2, out=x),
    "out of a view": lambda x: torch.add(x[0], 1, out=x[1]),
    "copy_": lambda x: x.copy_(x.flip(0)),
    "index_fill_": lambda x: x.index_fill_(1, torch.tensor([1]), 3.0),
    "aten": lambda x: torch.ops.aten.mul_.Tensor(x, x),
    "custom op": lambda x: double_(x),
    "checkpoint": branch(lambda x: x.mul_(2)),
}


def own_operand(m, x, g, b):
    b = tall(b).expand(-1, -1, 6, 5) * 1
    b.add_(m.conv(x) * tall(g))
    return b


def own_state(m, x, g, b):
    """What FiLM adds to is changed, and read once more."""
    state = tall(b) * x[:, :1, :6, :5]
    y = state.mul_(m.conv(x))
    return y + tall(g), state


def out_of_the_chain(m, x, g, b):
    buffer = torch.zeros(x.shape[0], K, 6, 5, dtype=x.dtype)
    y = torch.sigmoid(m.conv(x), out=buffer) * tall(g)
    return y, buffer


def alias_before(m, x, g, b):
    h = m.conv(x)
    alias = h.detach()
    return h.mul_(tall(g)), alias * 1


def attribute_before(m, x, g, b):
    h = m.conv(x)
    alias = h.mT
    return h.mul_(tall(g)), alias * 1


def same_name_after(m, x, g, b):
    h = m.conv(x)
    kept = h
    y = F.relu(h, inplace=True) * tall(g)
    return y, kept


def repeated_before(m, x, g, b):
    g = g * 1
    gamma = tall(g).repeat(1, 1, 6, 5)
    g.mul_(2)
    return m.conv(x) * gamma


def by_a_module(m, x, g, b):
    x = x * 1
    h = m.conv(x)
    return m.act(x).mean() + F.relu(h) * tall(g)


def norm_between(m, x, g, b):
    """The statistics of a frozen norm are those of another that is trained, and is called in between."""
    h = m.norm(m.conv(x))
    other = F.batch_norm(x[:, :1].expand(-1, K, -1, -1), m.norm.running_mean, m.norm.running_var, training=True)
    return h * tall(g), other


REFUSED = (
    *(between(change, name) for name, change in INPUT.items()),
    Change("weight", of_parts(lambda w, bias, g, b: w.mul_(2))),
    Change("a row of the weight", of_parts(lambda w, bias, g, b: w[0].zero_())),
    Change("bias", of_parts(lambda w, bias, g, b: bias.data.add_(1))),
    Change("gamma", of_parts(lambda w, bias, g, b: g.unsqueeze(0)[0].T.mul_(2))),
    Change("state", own_state),
    Change("out", out_of_the_chain),
    Change("alias", alias_before),
    Change("attribute", attribute_before),
    Change("same name", same_name_after),
    Change("repeated gamma", repeated_before),
    Change("running statistics", norm_between),
    Change("a module", by_a_module),
)


def fresh(m, x, g, b):
    h = m.conv(x)
    other = (x * 2).mul_(2)
    other[:, 0] = 0
    return h * tall(g) + tall(b), other


def counter(m, x, g, b):
    h = m.conv(x)
    m.counter.add_(1)
    m.state.copy_(x.mean((0, 2, 3)))
    return h * tall(g) + tall(b)


def beta_in_place(m, x, g, b):
    h = m.conv(x)
    beta = b * 2
    beta = beta.add_(1)
    return F.silu(h + tall(beta))


def beta_statement(m, x, g, b):
    h = m.conv(x)
    gamma, beta = torch.cat((g, b), 1).chunk(2, 1)
    gamma += 1
    beta.mul_(3)
    beta[:, 0] = 2
    return h * tall(gamma) + tall(beta)


def input_before(m, x, g, b):
    x = x * 1
    x.mul_(2)
    return F.relu(m.conv(x)) * tall(g) + tall(b)


def after(m, x, g, b):
    x = x * 1
    y = F.relu(m.conv(x) * tall(g) + tall(b))
    return y, x.detach().mul(2)


def statements(m, x, g, b):
    h = m.conv(x)
    h.mul_(tall(g))
    h.add_(tall(b))
    F.relu_(h)
    return h


def mixed_statements(m, x, g, b):
    h = m.conv(x)
    F.relu(h, inplace=True)
    h *= tall(g)
    h += tall(b)
    return h


def reads_between(m, x, g, b):
    h = m.conv(x)
    e = F.layer_norm(b, (K,)).softmax(-1)
    e = F.embedding(torch.argmax(e, 1), m.conv.weight.flatten(1)[:, :K])
    e = F.scaled_dot_product_attention(e[None], e[None], e[None])[0]
    e = torch.einsum("nk,nk->nk", e, doubled(b)) + torch.stack([F.one_hot(torch.tensor(1), K)] * x.shape[0])
    e = torch.utils.checkpoint.checkpoint(torch.sin, e, use_reentrant=False)
    return F.relu(h) * tall(g) + tall(e.to(x.dtype))


SERVED = tuple(
    Change(write.__name__, write)
    for write in (
        fresh, counter, own_operand, beta_in_place, beta_statement, input_before, after, statements, mixed_statements,
        reads_between,
    )
)  # fmt: skip


class Around(nn.Module):
    """A convolution that is not trained, so that autograd has nothing against changes of what it reads."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, K, 3).requires_grad_(False)
        self.norm = batch_norm().requires_grad_(False)
        self.register_buffer("counter", torch.zeros((), dtype=torch.long))
        self.register_buffer("state", torch.zeros(3))
        self.act = nn.LeakyReLU(0.1, inplace=True)
        self.write = change.write

    def forward(self, x, g, b, e):
        return self.write(self, x, g, b)
