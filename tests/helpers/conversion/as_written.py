"""How models write what stands around FiLM: norms by hand, biases by hand, conversions that change nothing, maps and
gates; each with what `find_film` must say of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers.conversion.spellings import K, tall


@dataclass(frozen=True)
class Written:
    """`write(m, x, g, b, e)` with the modules and parameters in `m`, of which `m.conv` is the convolution. `order` is
    what must be found, nothing where it is "", and `word` stands in the reason, nothing where it is fusable."""

    name: str
    write: Callable
    order: str = ""
    word: str = ""
    modules: Callable[[], dict[str, nn.Module]] = field(default=dict)


def film(v, g, b):
    return F.silu(v * (tall(g) + 1) + tall(b))


def of_the_result(norm, name="", **options):
    """conv -> `norm(m, h)` -> FiLM -> silu."""
    return {"write": lambda m, x, g, b, e: film(norm(m, m.conv(x)), g, b), "order": f"{name} film silu", **options}


def mean_rms(m, h):
    return h * torch.rsqrt(h.pow(2).mean(1, keepdim=True) + 1e-6)


def mean_rms_divided(m, h):
    return h / (h.square().mean(dim=1, keepdim=True) + 1e-6).sqrt() * m.scale


def norm_rms(m, h):
    return h / h.norm(dim=1, keepdim=True).clamp(min=1e-6) * m.scale


def var_mean(m, h):
    v, mean = torch.var_mean(h, dim=1, keepdim=True, unbiased=False)
    return (h - mean) * torch.rsqrt(v + 1e-5)


def mean_and_var(m, h):
    mean = h.mean(dim=1, keepdim=True)
    v = h.var(dim=1, unbiased=False, keepdim=True)
    return (h - mean) / (v + 1e-5).sqrt() * m.scale + m.shift


def centred_first(m, h):
    d = h - h.mean(1, keepdim=True)
    return d / (d.pow(2).mean(1, keepdim=True) + 1e-5) ** 0.5


def over_positions(m, h):
    return (h - h.mean((2, 3), keepdim=True)) / (h.std((2, 3), keepdim=True) + 1e-5)


def by_groups(m, h):
    n, c, *size = h.shape
    v = h.reshape(n, 2, -1)
    v = (v - v.mean(-1, keepdim=True)) * torch.rsqrt(v.var(-1, keepdim=True) + 1e-5)
    return v.view(n, c, *size) * m.scale


def permuted(m, h):
    return F.layer_norm(h.permute(0, 2, 3, 1), (K,)).permute(0, 3, 1, 2)


def transposed(m, h):
    return F.rms_norm(h.flatten(2).transpose(1, 2), (K,)).transpose(1, 2).view(h.shape)


def moved(m, h):
    return m.norm(h.movedim(1, -1)).movedim(-1, 1)


def float_group_norm(m, h):
    return m.norm(h.float()).type(h.dtype)


def other_dtype(m, h):
    return F.group_norm(h.double(), 2).to(h.dtype)


NORMS = (
    Written("F.normalize", **of_the_result(
        lambda m, h: F.normalize(h, dim=1) * m.scale * K**0.5, "normalize scale scale")),
    Written("mean of squares", **of_the_result(mean_rms, "rms_norm")),
    Written("division by its root", **of_the_result(mean_rms_divided, "rms_norm scale")),
    Written("Euclidean norm", **of_the_result(norm_rms, "rms_norm scale")),
    Written("var_mean", **of_the_result(var_mean, "layer_norm")),
    Written("mean and var", **of_the_result(mean_and_var, "layer_norm scale shift")),
    Written("centred first", **of_the_result(centred_first, "layer_norm")),
    Written("over positions", **of_the_result(over_positions, "norm", word="by a formula")),
    Written("by groups", **of_the_result(by_groups, "norm scale", word="by a formula")),
    Written("permuted layer_norm", **of_the_result(permuted, "layer_norm")),
    Written("transposed rms_norm", **of_the_result(transposed, "rms_norm")),
    Written("moved nn.LayerNorm", **of_the_result(
        moved, "layer_norm", modules=lambda: {"norm": nn.LayerNorm(K)})),
    Written("GroupNorm, float32", **of_the_result(
        float_group_norm, "group_norm", modules=lambda: {"norm": nn.GroupNorm(2, K)})),
    Written("group_norm in float64", **of_the_result(
        other_dtype, "double group_norm to", word="to torch.float32")),
    Written("instance_norm", **of_the_result(
        lambda m, h: F.instance_norm(h), "instance_norm")),
    Written("InstanceNorm with statistics", **of_the_result(
        lambda m, h: m.norm(h), "instance_norm", word="running statistics",
        modules=lambda: {"norm": nn.InstanceNorm2d(K, track_running_stats=True).train()})),
    Written("rms_norm over positions", **of_the_result(
        lambda m, h: F.rms_norm(h, h.shape[2:]), "rms_norm", word="over dimensions")),
    Written("batch_norm of the batch", **of_the_result(
        lambda m, h: F.batch_norm(h, None, None, training=True), "batch_norm")),
    Written("a bias, then GroupNorm", **of_the_result(
        lambda m, h: m.norm(h.add_(m.shift)), "shift group_norm",
        modules=lambda: {"norm": nn.GroupNorm(2, K)})),
    Written("mish", lambda m, x, g, b, e: F.mish(m.norm(m.conv(x))) * tall(g) + tall(b), "group_norm mish film",
            "", lambda: {"norm": nn.GroupNorm(2, K)}),
    Written("a residual, then a norm", lambda m, x, g, b, e: film(
        F.normalize(m.conv(x) + x[:, :1, :6, :5], dim=1), g, b)),
)  # fmt: skip


def ask_shape(m, x, g, b, e):
    h = torch.relu(m.conv(x))
    n = h.data.shape
    return tall(g).repeat(1, 1, n[2], n[3]) * h + tall(b).repeat(1, 1, *h.size()[2:])


def ask_all(m, x, g, b, e):
    h = m.conv(x)
    gamma = g.to(device=h.device, dtype=h.dtype).view(h.size(0), h.shape[1], *[1] * (h.dim() - 2))
    assert h.is_contiguous() and h.is_floating_point() and h.numel() and h.ndim == 4
    return gamma.type_as(h) * h + b.to(h)[:, :, None, None].expand_as(h)


def item(m, x, g, b, e):
    h = m.conv(x)
    k = torch.tensor([3])[0].item()
    h = h * tall(g) + tall(b)
    return torch.tanh(h[:, :k]) * torch.sigmoid(h[:, k:])


def repeated_parameters(m, x, g, b, e):
    return m.conv(x) * tall(g) + m.shift.repeat(x.shape[0], 1, 6, 5)


def sliced_after_repeating(m, x, g, b, e):
    both = torch.cat((g, b), 1)[:, :, None, None].repeat(1, 1, 6, 5)
    return (
        both[:, :K] * m.conv(x)
        + both[
            :,
            K:,
        ]
    )


def sliced_after_expanding(m, x, g, b, e):
    both = 1 + torch.cat((b, g), 1)[:, :, None, None].expand(-1, -1, 6, 5)
    return both[:, K:] * torch.relu(m.conv(x)) + both[:, :K]


def made_of_numbers(m, x, g, b, e):
    return m.conv(x) * (torch.Tensor([[[[2.0]]]]) * tall(g)) + tall(b)


def pooled_residual(m, x, g, b, e):
    v = F.adaptive_avg_pool2d(x, 3)
    return F.relu(m.conv(v) + F.adaptive_avg_pool2d(m.other(x), 1))


def one_by_one():
    return {"other": nn.Conv2d(3, K, 3), "again": nn.Conv2d(3, K, 3)}


def one_position(m, x, g, b, e):
    gamma, beta = (F.adaptive_avg_pool2d(F.pad(x, (0, 1)).repeat(1, 2, 1, 1) * i, 1) for i in (1, 2))
    return m.conv(x[:, :, :3, :3]) * gamma + beta


FUSED = (
    Written("conversions, float32", lambda m, x, g, b, e: film(m.conv(x).float().to(x.dtype).to(x).contiguous(), g, b),
            "film silu"),
    Written("type, float32", lambda m, x, g, b, e: film(m.conv(x).type(torch.float32).type_as(x), g, b), "film silu"),
    Written("conversions inside, float32", lambda m, x, g, b, e: (m.conv(x) * tall(g)).float().relu().to(x.dtype),
            "scale relu"),
    Written("clone", lambda m, x, g, b, e: film(m.conv(x).clone(), g, b), "film silu"),
    Written("identities", lambda m, x, g, b, e: film(m.drop(m.same(m.conv(x))), g, b), "dropout film silu",
            "", lambda: {"same": nn.Identity(), "drop": nn.Dropout(0.5).eval()}),
    Written("shape", ask_shape, "relu film"),
    Written("all that a shape tells", ask_all, "film"),
    Written("repeat of vectors", lambda m, x, g, b, e: m.conv(x) * g.view(-1, K, 1, 1).repeat([1, 1, 6, 5]), "scale"),
    Written("sliced after repeating", sliced_after_repeating, "film"),
    Written("sliced after expanding", sliced_after_expanding, "relu film"),
    Written("made of numbers in between", made_of_numbers, "film"),
    Written("tile", lambda m, x, g, b, e: m.conv(x) * torch.tile(tall(g), (6, 5)), "scale"),
    Written("item", item, "film"),
    Written("shift, then GroupNorm", lambda m, x, g, b, e: F.silu(m.norm(m.conv(x) + tall(b))), "shift",
            "", lambda: {"norm": nn.GroupNorm(2, K)}),
    Written("shift, then written norm", lambda m, x, g, b, e: F.silu(mean_rms(m, m.conv(x) + tall(b))), "shift"),
    Written("a bias, then FiLM", lambda m, x, g, b, e: film(m.conv(x) + m.shift, g, b), "shift film silu"),
    Written("a bias, relu, FiLM", lambda m, x, g, b, e: film(F.relu(m.conv(x).add_(m.shift)), g, b),
            "shift relu film"),
    Written("a scale by parameters, relu, FiLM", lambda m, x, g, b, e: film(F.relu(m.conv(x) * m.scale), g, b),
            "scale relu film"),
    Written("gamma of a task", lambda m, x, g, b, e: torch.relu(m.conv(x)) * m.scale, "relu scale"),
    Written("gamma and beta of a task", lambda m, x, g, b, e: F.relu(m.conv(x) * m.scale + m.shift), "film relu"),
    Written("gamma of a task behind BatchNorm", lambda m, x, g, b, e: m.norm(m.conv(x)) * m.scale + m.shift,
            "batch_norm film", "", lambda: {"norm": nn.BatchNorm2d(K, affine=False).eval()}),
    Written("repeated parameters", repeated_parameters, "film"),
    Written("one position", lambda m, x, g, b, e: film(m.conv(x[:, :, :3, :3]), g, b), "film silu"),
    Written("one position, pooled factors", one_position, "film", "", one_by_one),
)  # fmt: skip


def spade(m, x, g, b, e):
    return F.avg_pool2d(x.repeat(1, 2, 1, 1), 3, 1) * (1 + m.conv(x)) + tall(b)


def spade_norm(m, x, g, b, e):
    return F.instance_norm(x.repeat(1, 2, 1, 1)[:, :, 2:, 2:]) * m.conv(x) + m.other(x)


def spade_without_one(m, x, g, b, e):
    return x.repeat(1, 2, 1, 1)[:, :, 2:, 2:] * m.conv(x) + m.other(x)


def gate_and_residual(m, x, g, b, e):
    v = x.repeat(1, 2, 1, 1)[:, :, 2:, 2:]
    return torch.sigmoid(m.conv(x)) * v + v


def squeeze(m, x, g, b, e):
    v = x.repeat(1, 2, 1, 1)
    return v * (1 + m.conv(F.adaptive_avg_pool2d(x, 3))) + m.other(F.adaptive_avg_pool2d(x, 3))


def frozen(m, x, g, b, e):
    return F.relu(m.conv(x) * m.fixed + m.fixed)


NOT_FILM = (
    Written("a bias", lambda m, x, g, b, e: F.silu(m.conv(x).add_(m.shift))),
    Written("a bias of vectors", lambda m, x, g, b, e: m.conv(x) + m.row.reshape(1, -1, 1, 1)),
    Written("a bias that is repeated", lambda m, x, g, b, e: m.conv(x) + m.shift.repeat(x.shape[0], 1, 1, 1)),
    Written("a norm's own affine", lambda m, x, g, b, e: F.silu(F.normalize(m.conv(x), dim=1) * m.scale + m.shift)),
    Written("a written norm's own", lambda m, x, g, b, e: F.silu(mean_and_var(m, m.conv(x)))),
    Written("a norm by buffers", frozen),
    Written("a residual on one position", pooled_residual, modules=one_by_one),
    Written(
        "a gate on one position",
        lambda m, x, g, b, e: m.conv(x[:, :, :3, :3]) * F.adaptive_avg_pool2d(x.repeat(1, 2, 1, 1), 1),
    ),
    Written("SPADE", spade),
    Written("SPADE with a norm", spade_norm, modules=one_by_one),
    Written("SPADE without 1 +", spade_without_one, modules=one_by_one),
    Written("a gate and a residual", gate_and_residual),
    Written("squeeze and excite", squeeze, modules=one_by_one),
)

ALL = (*NORMS, *FUSED, *NOT_FILM)


class Model(nn.Module):
    def __init__(self, written: Written) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, K, 3)
        self.scale, self.shift = (nn.Parameter(torch.randn(*shape, 1, 1)) for shape in ((K,), (1, K)))
        self.row = nn.Parameter(torch.randn(K))
        self.register_buffer("fixed", torch.rand(1, K, 1, 1))
        for name, module in written.modules().items():
            self.add_module(name, module)
        self.write = written.write

    def forward(self, x, g, b, e):
        return self.write(self, x, g, b, e)
