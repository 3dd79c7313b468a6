"""Where FiLM stands in the models that people publish: each pattern in the spellings in which packages have it, with
what `find_film` says of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from film_kernels import find_film, fuse

C, K, N, WORDS = 4, 8, 2, 5  # channels in and out, samples, what gamma and beta are made of
NOT_LISTED = ""
MAP = "FiLM varies over positions: a kernel takes one gamma and beta per sample and channel"
TRAINING = (
    "a BatchNorm in training stands between convolution and FiLM: its statistics need the whole batch first"
    " (model.eval(), or freeze it)"
)
VOLUME = "3d convolutions have no fused kernel, so nothing would be gained; and "


def statistics(name: str) -> str:
    return f"FiLM follows {name}, whose statistics need the whole result of the convolution first"


def nothing_before(name: str) -> str:
    return f"FiLM follows {name}, and no convolution that could take it in stands in front of that"


@dataclass(frozen=True)
class Pattern:
    """`write(m, t)` with the modules in `m`, and in `t` the inputs and what is made of `t.emb`: `t.scale` and `t.shift`
    (N, K). `order` is what is found, and `reason` why it is not fused, None where it is."""

    spelling: str
    write: Callable
    order: str
    reason: str | None = None
    modules: Callable[[], dict[str, nn.Module]] = field(default=dict)


def tall(t, dims=2):
    return t[(..., *[None] * dims)]


def film(h, t, dims=2):
    """As in ADM, Imagen and their kin."""
    return h * (1 + tall(t.scale, dims)) + tall(t.shift, dims)


def modulate(h, t):
    """DiT's."""
    return h * (1 + t.scale.unsqueeze(1)) + t.shift.unsqueeze(1)


def with_(**modules):
    return {"modules": lambda: {name: make() for name, make in modules.items()}}


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


GROUP = (
    Pattern("silu", lambda m, t: F.silu(film(m.norm(m.conv(t.picture)), t)), "conv2d group_norm film silu",
            statistics("group_norm"), **with_(norm=group_norm)),
    Pattern("gelu", lambda m, t: F.gelu(torch.addcmul(tall(t.shift), m.norm(m.conv(t.picture)), tall(t.scale))),
            "conv2d group_norm film gelu", statistics("group_norm"), **with_(norm=group_norm)),
    Pattern("relu", lambda m, t: F.relu(F.group_norm(m.conv(t.picture), 4) * tall(t.scale) + tall(t.shift)),
            "conv2d group_norm film relu", statistics("group_norm")),
    Pattern("a block with scale and shift", lambda m, t: m.block(t.picture, (tall(t.scale), tall(t.shift))),
            "conv2d group_norm film silu", statistics("group_norm"), **with_(block=Block)),
    Pattern("in float32", lambda m, t: F.silu(film(m.norm(m.conv(t.picture)), t)), "conv2d group_norm film silu",
            statistics("group_norm"), **with_(norm=lambda: GroupNorm32(2, K))),
    Pattern("einops", lambda m, t: F.silu(m.norm(m.conv(t.picture)) * (rearrange(t.scale, "b c -> b c 1 1") + 1)
                                          + rearrange(t.shift, "b c -> b c 1 1")),
            "conv2d group_norm film silu", statistics("group_norm"), **with_(norm=group_norm)),
    Pattern("dropout between", lambda m, t: m.drop(F.silu(film(m.norm(m.conv(t.picture)), t))),
            "conv2d group_norm film silu", statistics("group_norm"),
            **with_(norm=group_norm, drop=lambda: nn.Dropout(0.1))),
)  # fmt: skip
SHIFT = (
    Pattern("DDPM", lambda m, t: F.silu(m.norm(m.conv(t.picture) + t.shift[:, :, None, None])), "conv2d shift", None,
            **with_(norm=group_norm)),
    Pattern("in place", lambda m, t: F.silu(m.norm(m.conv(t.picture).add_(tall(t.shift)))), "conv2d shift", None,
            **with_(norm=group_norm)),
    Pattern("behind the activation", lambda m, t: m.norm(F.silu(m.conv(t.picture)) + tall(t.shift)),
            "conv2d silu shift", None, **with_(norm=group_norm)),
    Pattern("1d", lambda m, t: F.mish(m.norm(m.conv1d(t.sequence) + tall(t.shift, 1))), "conv1d shift", None,
            **with_(norm=group_norm)),
    Pattern("3d", lambda m, t: F.silu(m.norm(m.conv3d(t.volume) + tall(t.shift, 3))), "conv3d shift",
            "3d convolutions have no fused kernel, so nothing would be gained", **with_(norm=group_norm)),
)  # fmt: skip
RMS = (
    *(
        Pattern(f"F.normalize, {dims}d",
                lambda m, t, d=dims, x=x: F.silu(film(m.norm(m.get_submodule(f"conv{d}d")(getattr(t, x))), t, d)),
                f"conv{dims}d normalize scale scale film silu", (VOLUME if dims == 3 else "") + statistics("normalize"),
                **with_(norm=lambda dims=dims: RMSNorm(dims)))
        for dims, x in ((1, "sequence"), (2, "picture"), (3, "volume"))
    ),
    Pattern("written out", lambda m, t: F.silu(film(
        (h := m.conv(t.picture)) * torch.rsqrt(h.pow(2).mean(1, keepdim=True) + 1e-6), t)),
        "conv2d rms_norm film silu", statistics("rms_norm")),
    Pattern("its length", lambda m, t: F.silu(film((h := m.conv(t.picture)) / h.norm(dim=1, keepdim=True), t)),
            "conv2d rms_norm film silu", statistics("rms_norm")),
)  # fmt: skip
BATCH = (
    Pattern("relu", lambda m, t: F.relu(film(m.norm(m.conv(t.picture)), t)), "conv2d batch_norm film relu", None,
            **with_(norm=lambda: nn.BatchNorm2d(K).eval())),
    Pattern("relu, in training", lambda m, t: F.relu(film(m.norm(m.conv(t.picture)), t)),
            "conv2d batch_norm film relu", TRAINING, **with_(norm=lambda: nn.BatchNorm2d(K))),
    Pattern("tanh", lambda m, t: torch.tanh(film(m.norm(m.conv1d(t.sequence)), t, 1)), "conv1d batch_norm film tanh",
            None, **with_(norm=lambda: nn.BatchNorm1d(K, affine=False).eval())),
    Pattern("tanh, in training", lambda m, t: torch.tanh(film(m.norm(m.conv1d(t.sequence)), t, 1)),
            "conv1d batch_norm film tanh", TRAINING, **with_(norm=lambda: nn.BatchNorm1d(K))),
    Pattern("prelu", lambda m, t: m.act(film(m.norm(m.conv1d(t.sequence)), t, 1)), "conv1d batch_norm film", None,
            **with_(norm=lambda: nn.BatchNorm1d(K).eval(), act=nn.PReLU)),
    Pattern("BigGAN", lambda m, t: F.relu(m.norm(m.conv(t.picture), t.emb)), "conv2d batch_norm film relu", None,
            **with_(norm=lambda: ConditionalBatchNorm().eval())),
    Pattern("BigGAN, in training", lambda m, t: F.relu(m.norm(m.conv(t.picture), t.emb)),
            "conv2d batch_norm film relu", TRAINING, **with_(norm=ConditionalBatchNorm)),
    Pattern("between relu and FiLM", lambda m, t: film(m.norm(F.relu(m.conv(t.picture))), t),
            "conv2d relu batch_norm film", None, **with_(norm=lambda: nn.BatchNorm2d(K).eval())),
)  # fmt: skip
MISH = (
    Pattern("FiLM", lambda m, t: film(conv1d_block(m, t), t, 1), "conv1d group_norm mish film",
            statistics("group_norm"), **with_(norm=group_norm)),
    Pattern("halves of one tensor", lambda m, t: (
        (e := m.cond(t.emb).view(-1, 2, K, 1))[:, 0] * conv1d_block(m, t) + e[:, 1]),
            "conv1d group_norm mish film", statistics("group_norm"),
            **with_(norm=group_norm, cond=lambda: nn.Linear(WORDS, 2 * K))),
    Pattern("shift", lambda m, t: conv1d_block(m, t) + rearrange(t.shift, "batch c -> batch c 1"),
            "conv1d group_norm mish shift", statistics("group_norm"), **with_(norm=group_norm)),
)  # fmt: skip
TOKENS = (
    Pattern("DiT", lambda m, t: modulate(m.norm(t.tokens), t), "layer_norm film", nothing_before("layer_norm"),
            **with_(norm=lambda: nn.LayerNorm(K, elementwise_affine=False))),
    Pattern("RMSNorm", lambda m, t: modulate(m.norm(t.tokens), t), "rms_norm film", nothing_before("rms_norm"),
            **with_(norm=lambda: nn.RMSNorm(K))),
    Pattern("written out", written_rms, "rms_norm scale film", nothing_before("rms_norm")),
    Pattern("scale alone", lambda m, t: m.norm(t.tokens) * (1 + t.scale[:, None]), "layer_norm scale",
            nothing_before("layer_norm"), **with_(norm=lambda: nn.LayerNorm(K))),
    Pattern("patches of a picture", patches, "conv2d layer_norm film", statistics("layer_norm"),
            **with_(norm=lambda: nn.LayerNorm(K))),
    Pattern("behind a linear layer", lambda m, t: modulate(m.linear(t.tokens), t), "linear film",
            "a linear layer stands in front of FiLM, and only convolutions have kernels that take it in"),
    Pattern("behind nothing", lambda m, t: modulate(t.tokens, t), "film",
            "no convolution stands in front of FiLM, and only convolutions have kernels that take it in"),
    Pattern("a gate on a branch", lambda m, t: t.tokens + t.scale.unsqueeze(1) * m.linear(t.tokens), NOT_LISTED),
)  # fmt: skip
MAPS = (
    Pattern("SPADE", lambda m, t: m.spade(m.conv(t.picture), t.other), "conv2d instance_norm film",
            f"{statistics('instance_norm')}; and {MAP}", **with_(spade=lambda: Spade(nn.InstanceNorm2d(K)))),
    Pattern("SPADE with a BatchNorm", lambda m, t: m.spade(m.conv(t.picture), t.other), "conv2d batch_norm film", MAP,
            **with_(spade=lambda: Spade(nn.BatchNorm2d(K, affine=False).eval()))),
    Pattern("WaveGrad", wavegrad, "conv1d film", MAP,
            **with_(film=lambda: nn.Conv1d(C, 2 * K, 3, padding=1))),
)  # fmt: skip
WITHOUT = (
    Pattern("GroupNorm", lambda m, t: F.silu(film(m.norm(t.features), t)), "group_norm film silu",
            nothing_before("group_norm"), **with_(norm=group_norm)),
    Pattern("behind a residual", lambda m, t: F.silu(film(m.norm(t.features + m.conv(t.picture)), t)),
            "group_norm film silu", nothing_before("group_norm"), **with_(norm=group_norm)),
    Pattern("behind a pool", lambda m, t: F.relu(film(m.norm(F.avg_pool2d(m.conv(t.picture), 2)), t)),
            "batch_norm film relu", nothing_before("batch_norm"), **with_(norm=lambda: nn.BatchNorm2d(K))),
    Pattern("BigGAN", lambda m, t: F.relu(m.norm(t.features, t.emb)), "batch_norm film relu",
            nothing_before("batch_norm"), **with_(norm=lambda: ConditionalBatchNorm().eval())),
    Pattern("AdaIN", lambda m, t: F.leaky_relu(m.norm(t.features, t.emb), 0.2), "instance_norm film leaky_relu",
            nothing_before("instance_norm"), **with_(norm=AdaIN)),
    Pattern("AdaIN of features", adain_of_features, "norm film", nothing_before("norm"),
            **with_(other=lambda: nn.Conv2d(C, K, 3))),
    Pattern("shift", lambda m, t: F.silu(m.norm(t.features) + tall(t.shift)), "group_norm shift silu",
            nothing_before("group_norm"), **with_(norm=group_norm)),
)  # fmt: skip
DIRECT = (
    Pattern("gelu", lambda m, t: F.gelu(film(m.conv(t.picture), t)), "conv2d film gelu"),
    Pattern("relu", lambda m, t: F.relu(tall(t.scale) * m.conv(t.picture) + tall(t.shift)), "conv2d film relu"),
    Pattern("tanh and sigmoid of halves", wavenet, "conv1d film"),
)
INSTANCE = (
    Pattern("StarGAN v2", lambda m, t: F.leaky_relu(m.norm(m.conv(t.picture), t.emb), 0.2),
            "conv2d instance_norm film leaky_relu", statistics("instance_norm"), **with_(norm=AdaIN)),
    Pattern("F.instance_norm", lambda m, t: F.relu(film(F.instance_norm(m.conv(t.picture)), t)),
            "conv2d instance_norm film relu", statistics("instance_norm")),
    Pattern("written out", lambda m, t: film(((h := m.conv(t.picture)) - h.mean((2, 3), keepdim=True))
                                             / h.std((2, 3), keepdim=True), t),
            "conv2d norm film", statistics("norm")),
)  # fmt: skip
OTHERS = (
    Pattern("scale, residual", lambda m, t: t.features + m.conv(t.picture) * tall(t.scale), "conv2d scale"),
    Pattern("LayerScale", lambda m, t: t.features + m.conv(t.picture) * m.g.view(1, K, 1, 1), "conv2d scale"),
    Pattern("activation, shift", lambda m, t: F.silu(m.conv(t.picture)) + tall(t.shift), "conv2d silu shift"),
    Pattern("permuted LayerNorm", lambda m, t: film(m.norm(m.conv(t.picture)), t), "conv2d layer_norm film",
            statistics("layer_norm"), **with_(norm=lambda: LayerNorm2d(K))),
    Pattern("FiLM among permuted", convnext, "conv2d layer_norm film", statistics("layer_norm"),
            **with_(norm=lambda: nn.LayerNorm(K))),
)  # fmt: skip


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


ORDINARY = tuple(
    Pattern(spelling, write, NOT_LISTED, None,
            **with_(norm=lambda: nn.LayerNorm(K), batch_norm=lambda: nn.BatchNorm2d(K)))
    for spelling, write in (
        ("residual of a transformer", residual_block),
        ("positional embedding", lambda m, t: m.norm(t.tokens) + m.positions),
        ("a bias", lambda m, t: m.conv(t.picture) + m.g.view(1, K, 1, 1)),
        ("rotary embedding", rotary),
        ("mask of tokens", lambda m, t: m.norm(t.tokens) * (t.tokens[..., :1] > 0)),
        ("mask of a picture", lambda m, t: m.conv(t.picture) * (t.features[:, :1] > 0)),
        ("squeeze and excite", squeeze_and_excite),
        ("scaled by its own mean", scaled_by_its_mean),
        ("gate by sigmoid", lambda m, t: m.norm(t.tokens) * t.scale.unsqueeze(1).sigmoid()),
        ("depth of each sample", lambda m, t: m.norm(t.tokens) * t.emb[:, :1, None]),
        ("a norm's own affine", lambda m, t: F.group_norm(t.features, 2) * m.g[:, None, None] + m.g[:, None, None]),
        ("statistics that come back", brought_back),
        ("a loss", weighted_loss),
        ("arithmetic of vectors", lambda m, t: tall(t.scale) * (1 + tall(t.shift)) + tall(t.scale)),
    )
)  # fmt: skip

TABLE = {
    "conv -> GroupNorm -> FiLM -> activation": GROUP,
    "conv -> shift alone, then GroupNorm": SHIFT,
    "conv -> RMSNorm over channels -> FiLM": RMS,
    "conv -> BatchNorm -> FiLM": BATCH,
    "conv1d -> GroupNorm -> mish -> FiLM or shift": MISH,
    "AdaLN or a scale on tokens": TOKENS,
    "FiLM that varies over positions": MAPS,
    "a norm -> FiLM with no convolution before it": WITHOUT,
    "conv -> FiLM": DIRECT,
    "conv -> InstanceNorm -> FiLM": INSTANCE,
    "what else stands behind a convolution": OTHERS,
    "what is no FiLM": ORDINARY,
}


@dataclass
class Inputs:
    picture: torch.Tensor
    other: torch.Tensor
    features: torch.Tensor  # a picture of K channels
    sequence: torch.Tensor
    volume: torch.Tensor
    tokens: torch.Tensor
    emb: torch.Tensor
    scale: torch.Tensor
    shift: torch.Tensor


class Model(nn.Module):
    def __init__(self, pattern: Pattern) -> None:
        super().__init__()
        self.conv, self.conv1d, self.conv3d = (kind(C, K, 3, padding=1) for kind in (nn.Conv2d, nn.Conv1d, nn.Conv3d))
        self.conv2d = self.conv
        self.linear, self.embed = nn.Linear(K, K), nn.Linear(WORDS, 2 * K)
        self.g, self.positions = nn.Parameter(torch.ones(K)), nn.Parameter(torch.zeros(1, 6, K))
        for name, module in pattern.modules().items():
            self.add_module(name, module)
        self.write = pattern.write

    def forward(self, picture, other, features, sequence, volume, tokens, emb):
        scale, shift = self.embed(F.silu(emb)).chunk(2, dim=1)
        given = Inputs(picture, other, features, sequence, volume, tokens, emb, scale, shift)
        return self.write(self, given)


class Together(nn.Module):
    """All patterns of a row on the same inputs: one capture serves them."""

    def __init__(self, patterns) -> None:
        super().__init__()
        self.parts = nn.ModuleList(map(Model, patterns))

    def forward(self, *inputs):
        return [part(*inputs) for part in self.parts]


def example_inputs():
    generator = torch.Generator().manual_seed(0)
    shapes = ((C, 9, 7), (C, 9, 7), (K, 9, 7), (C, 9), (C, 3, 5, 4), (6, K), (WORDS,))
    return tuple(torch.randn(N, *shape, generator=generator) for shape in shapes)


@pytest.mark.parametrize("row", TABLE)
def test_what_is_said(row):
    patterns = TABLE[row]
    found: dict[int, list] = {i: [] for i in range(len(patterns))}
    for site in find_film(Together(patterns), example_inputs()):
        found[int(site.path.split(".")[1])].append(site)
    said = [
        (pattern.spelling, *((" ".join(site.order), site.reason) for site in found[i]))
        for i, pattern in enumerate(patterns)
    ]
    expected = [
        (pattern.spelling, *([(pattern.order, pattern.reason)] if pattern.order else [])) for pattern in patterns
    ]
    assert said == expected
    for sites in found.values():
        assert all(site.fusable == (site.reason is None) and "test_patterns.py:" in site.source for site in sites)


@pytest.mark.parametrize("row", TABLE)
def test_results_are_what_they_were(row):
    """Of everything, fused or not."""
    torch.manual_seed(0)
    model = Together(TABLE[row]).eval()
    fused, inputs = fuse(copy.deepcopy(model)), example_inputs()
    for one, other in zip(fused(*inputs), model(*inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_arguments_by_name_in_a_symbolic_trace():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(C, K, 3), group_norm()

        def forward(self, x, g):
            return self.norm(input=self.conv(input=x)) * tall(g)

    (site,) = find_film(Named())
    assert site.order == ("conv2d", "group_norm", "scale") and site.reason == statistics("group_norm")
