"""Where FiLM stands in the models that people publish: each pattern in the spellings in which packages have it, with
what `find_film` says of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from .published import (
    WORDS,
    AdaIN,
    Block,
    C,
    ConditionalBatchNorm,
    GroupNorm32,
    K,
    LayerNorm2d,
    RMSNorm,
    Spade,
    adain_of_features,
    brought_back,
    conv1d_block,
    convnext,
    film,
    group_norm,
    modulate,
    patches,
    residual_block,
    rotary,
    scaled_by_its_mean,
    squeeze_and_excite,
    tall,
    wavegrad,
    wavenet,
    weighted_loss,
    written_rms,
)

NOT_LISTED = ""
MAP = "FiLM varies over positions: a kernel takes one gamma and beta per sample and channel"
SYNCHRONISED = (
    "FiLM follows a SyncBatchNorm in training, whose statistics are those of all processes (model.eval(), or freeze it)"
)
OTHER_FORMULA = "FiLM follows norm by a formula that norm_film does not have (an unbiased variance, say)"


@dataclass(frozen=True)
class Pattern:
    """`write(m, t)` with the modules in `m`, and in `t` the inputs and what is made of `t.emb`: `t.scale` and `t.shift`
    (N, K). `order` is what is found, with a bar in front of the norm that begins a call of norm_film, and `reason` why
    it is not fused, None where it is. `also` is found behind it, and is fused too."""

    spelling: str
    write: Callable
    order: str
    reason: str | None = None
    modules: Callable[[], dict[str, nn.Module]] = field(default=dict)
    also: str = ""


def with_(**modules):
    return {"modules": lambda: {name: make() for name, make in modules.items()}}


GROUP = (
    Pattern("silu", lambda m, t: F.silu(film(m.norm(m.conv(t.picture)), t)), "conv2d | group_norm film silu",
            None, **with_(norm=group_norm)),
    Pattern("gelu", lambda m, t: F.gelu(torch.addcmul(tall(t.shift), m.norm(m.conv(t.picture)), tall(t.scale))),
            "conv2d | group_norm film gelu", None, **with_(norm=group_norm)),
    Pattern("relu", lambda m, t: F.relu(F.group_norm(m.conv(t.picture), 4) * tall(t.scale) + tall(t.shift)),
            "conv2d | group_norm film relu", None),
    Pattern("a block with scale and shift", lambda m, t: m.block(t.picture, (tall(t.scale), tall(t.shift))),
            "conv2d | group_norm film silu", None, **with_(block=Block)),
    Pattern("in float32", lambda m, t: F.silu(film(m.norm(m.conv(t.picture)), t)), "conv2d | group_norm film silu",
            None, **with_(norm=lambda: GroupNorm32(2, K))),
    Pattern("einops", lambda m, t: F.silu(m.norm(m.conv(t.picture)) * (rearrange(t.scale, "b c -> b c 1 1") + 1)
                                          + rearrange(t.shift, "b c -> b c 1 1")),
            "conv2d | group_norm film silu", None, **with_(norm=group_norm)),
    Pattern("dropout between", lambda m, t: m.drop(F.silu(film(m.norm(m.conv(t.picture)), t))),
            "conv2d | group_norm film silu", None,
            **with_(norm=group_norm, drop=lambda: nn.Dropout(0.1))),
)  # fmt: skip
SHIFT = (
    Pattern("DDPM", lambda m, t: F.silu(m.norm(m.conv(t.picture) + t.shift[:, :, None, None])), "conv2d shift", None,
            **with_(norm=group_norm), also="| group_norm silu"),
    Pattern("in place", lambda m, t: F.silu(m.norm(m.conv(t.picture).add_(tall(t.shift)))), "conv2d shift", None,
            **with_(norm=group_norm), also="| group_norm silu"),
    Pattern("behind the activation", lambda m, t: m.norm(F.silu(m.conv(t.picture)) + tall(t.shift)),
            "conv2d silu shift", None, **with_(norm=group_norm)),
    Pattern("1d", lambda m, t: F.mish(m.norm(m.conv1d(t.sequence) + tall(t.shift, 1))), "conv1d shift", None,
            **with_(norm=group_norm), also="| group_norm mish"),
    Pattern("3d", lambda m, t: F.silu(m.norm(m.conv3d(t.volume) + tall(t.shift, 3))), "conv3d shift",
            "3d convolutions have no fused kernel, so nothing would be gained", **with_(norm=group_norm),
            also="| group_norm silu"),
    Pattern("FiLM behind the norm too", lambda m, t: F.silu(film(m.norm(m.conv(t.picture) + tall(t.shift)), t)),
            "conv2d shift", None, **with_(norm=group_norm), also="| group_norm film silu"),
)  # fmt: skip
RMS = (
    *(
        Pattern(f"F.normalize, {dims}d",
                lambda m, t, d=dims, x=x: F.silu(film(m.norm(m.get_submodule(f"conv{d}d")(getattr(t, x))), t, d)),
                f"conv{dims}d | normalize scale scale film silu", None,
                **with_(norm=lambda dims=dims: RMSNorm(dims)))
        for dims, x in ((1, "sequence"), (2, "picture"), (3, "volume"))
    ),
    Pattern("written out", lambda m, t: F.silu(film(
        (h := m.conv(t.picture)) * torch.rsqrt(h.pow(2).mean(1, keepdim=True) + 1e-6), t)),
        "conv2d | rms_norm film silu", None),
    Pattern("its length", lambda m, t: F.silu(film((h := m.conv(t.picture)) / h.norm(dim=1, keepdim=True), t)),
            "conv2d | rms_norm film silu", None),
)  # fmt: skip
BATCH = (
    Pattern("relu", lambda m, t: F.relu(film(m.norm(m.conv(t.picture)), t)), "conv2d batch_norm film relu", None,
            **with_(norm=lambda: nn.BatchNorm2d(K).eval())),
    Pattern("relu, in training", lambda m, t: F.relu(film(m.norm(m.conv(t.picture)), t)),
            "conv2d | batch_norm film relu", None, **with_(norm=lambda: nn.BatchNorm2d(K))),
    Pattern("tanh", lambda m, t: torch.tanh(film(m.norm(m.conv1d(t.sequence)), t, 1)), "conv1d batch_norm film tanh",
            None, **with_(norm=lambda: nn.BatchNorm1d(K, affine=False).eval())),
    Pattern("tanh, in training", lambda m, t: torch.tanh(film(m.norm(m.conv1d(t.sequence)), t, 1)),
            "conv1d | batch_norm film tanh", None, **with_(norm=lambda: nn.BatchNorm1d(K))),
    Pattern("prelu", lambda m, t: m.act(film(m.norm(m.conv1d(t.sequence)), t, 1)), "conv1d batch_norm film", None,
            **with_(norm=lambda: nn.BatchNorm1d(K).eval(), act=nn.PReLU)),
    Pattern("BigGAN", lambda m, t: F.relu(m.norm(m.conv(t.picture), t.emb)), "conv2d batch_norm film relu", None,
            **with_(norm=lambda: ConditionalBatchNorm().eval())),
    Pattern("BigGAN, in training", lambda m, t: F.relu(m.norm(m.conv(t.picture), t.emb)),
            "conv2d | batch_norm film relu", None, **with_(norm=ConditionalBatchNorm)),
    Pattern("between relu and FiLM", lambda m, t: film(m.norm(F.relu(m.conv(t.picture))), t),
            "conv2d relu batch_norm film", None, **with_(norm=lambda: nn.BatchNorm2d(K).eval())),
    Pattern("3d", lambda m, t: F.relu(film(m.norm(m.conv3d(t.volume)), t, 3)), "conv3d | batch_norm film relu", None,
            **with_(norm=lambda: nn.BatchNorm3d(K).eval())),
    Pattern("behind another norm", lambda m, t: F.relu(film(m.norm(F.group_norm(m.conv(t.picture), 2)), t)),
            "conv2d group_norm | batch_norm film relu", None, **with_(norm=lambda: nn.BatchNorm2d(K).eval())),
    Pattern("synchronised, in training", lambda m, t: F.relu(film(m.norm(m.conv(t.picture)), t)),
            "conv2d batch_norm film relu", SYNCHRONISED, **with_(norm=lambda: nn.SyncBatchNorm(K))),
)  # fmt: skip
MISH = (
    Pattern("FiLM", lambda m, t: film(conv1d_block(m, t), t, 1), "conv1d | group_norm mish film",
            None, **with_(norm=group_norm)),
    Pattern("halves of one tensor", lambda m, t: (
        (e := m.cond(t.emb).view(-1, 2, K, 1))[:, 0] * conv1d_block(m, t) + e[:, 1]),
            "conv1d | group_norm mish film", None,
            **with_(norm=group_norm, cond=lambda: nn.Linear(WORDS, 2 * K))),
    Pattern("shift", lambda m, t: conv1d_block(m, t) + rearrange(t.shift, "batch c -> batch c 1"),
            "conv1d | group_norm mish shift", None, **with_(norm=group_norm)),
)  # fmt: skip
TOKENS = (
    Pattern("DiT", lambda m, t: modulate(m.norm(t.tokens), t), "| layer_norm film", None,
            **with_(norm=lambda: nn.LayerNorm(K, elementwise_affine=False))),
    Pattern("RMSNorm", lambda m, t: modulate(m.norm(t.tokens), t), "| rms_norm film", None,
            **with_(norm=lambda: nn.RMSNorm(K))),
    Pattern("written out", written_rms, "| rms_norm scale film", None),
    Pattern("scale alone", lambda m, t: m.norm(t.tokens) * (1 + t.scale[:, None]), "| layer_norm scale",
            None, **with_(norm=lambda: nn.LayerNorm(K))),
    Pattern("patches of a picture", patches, "conv2d | layer_norm film", None,
            **with_(norm=lambda: nn.LayerNorm(K))),
    Pattern("behind a linear layer", lambda m, t: modulate(m.linear(t.tokens), t), "linear film",
            "a linear layer stands in front of FiLM, and only convolutions and norms have kernels that take it in"),
    Pattern("behind nothing", lambda m, t: modulate(t.tokens, t), "film",
            "neither a convolution nor a norm stands in front of FiLM, and only these have kernels that take it in"),
    Pattern("a gate on a branch", lambda m, t: t.tokens + t.scale.unsqueeze(1) * m.linear(t.tokens), NOT_LISTED),
)  # fmt: skip
MAPS = (
    Pattern("SPADE", lambda m, t: m.spade(m.conv(t.picture), t.other), "conv2d instance_norm film",
            MAP, **with_(spade=lambda: Spade(nn.InstanceNorm2d(K)))),
    Pattern("SPADE with a BatchNorm", lambda m, t: m.spade(m.conv(t.picture), t.other), "conv2d batch_norm film", MAP,
            **with_(spade=lambda: Spade(nn.BatchNorm2d(K, affine=False).eval()))),
    Pattern("WaveGrad", wavegrad, "conv1d film", MAP,
            **with_(film=lambda: nn.Conv1d(C, 2 * K, 3, padding=1))),
)  # fmt: skip
WITHOUT = (
    Pattern("GroupNorm", lambda m, t: F.silu(film(m.norm(t.features), t)), "| group_norm film silu",
            None, **with_(norm=group_norm)),
    Pattern("behind a residual", lambda m, t: F.silu(film(m.norm(t.features + m.conv(t.picture)), t)),
            "| group_norm film silu", None, **with_(norm=group_norm)),
    Pattern("behind a pool", lambda m, t: F.relu(film(m.norm(F.avg_pool2d(m.conv(t.picture), 2)), t)),
            "| batch_norm film relu", None, **with_(norm=lambda: nn.BatchNorm2d(K))),
    Pattern("BigGAN", lambda m, t: F.relu(m.norm(t.features, t.emb)), "| batch_norm film relu",
            None, **with_(norm=lambda: ConditionalBatchNorm().eval())),
    Pattern("AdaIN", lambda m, t: F.leaky_relu(m.norm(t.features, t.emb), 0.2), "| instance_norm film leaky_relu",
            None, **with_(norm=AdaIN)),
    Pattern("AdaIN of features", adain_of_features, "norm film", OTHER_FORMULA,
            **with_(other=lambda: nn.Conv2d(C, K, 3))),
    Pattern("shift", lambda m, t: F.silu(m.norm(t.features) + tall(t.shift)), "| group_norm shift silu",
            None, **with_(norm=group_norm)),
)  # fmt: skip
DIRECT = (
    Pattern("gelu", lambda m, t: F.gelu(film(m.conv(t.picture), t)), "conv2d film gelu"),
    Pattern("relu", lambda m, t: F.relu(tall(t.scale) * m.conv(t.picture) + tall(t.shift)), "conv2d film relu"),
    Pattern("tanh and sigmoid of halves", wavenet, "conv1d film"),
)
INSTANCE = (
    Pattern("StarGAN v2", lambda m, t: F.leaky_relu(m.norm(m.conv(t.picture), t.emb), 0.2),
            "conv2d | instance_norm film leaky_relu", None, **with_(norm=AdaIN)),
    Pattern("F.instance_norm", lambda m, t: F.relu(film(F.instance_norm(m.conv(t.picture)), t)),
            "conv2d | instance_norm film relu", None),
    Pattern("written out", lambda m, t: film(((h := m.conv(t.picture)) - h.mean((2, 3), keepdim=True))
                                             / h.std((2, 3), keepdim=True), t),
            "conv2d norm film", OTHER_FORMULA),
)  # fmt: skip
OTHERS = (
    Pattern("scale, residual", lambda m, t: t.features + m.conv(t.picture) * tall(t.scale), "conv2d scale"),
    Pattern("LayerScale", lambda m, t: t.features + m.conv(t.picture) * m.g.view(1, K, 1, 1), "conv2d scale"),
    Pattern("activation, shift", lambda m, t: F.silu(m.conv(t.picture)) + tall(t.shift), "conv2d silu shift"),
    Pattern("permuted LayerNorm", lambda m, t: film(m.norm(m.conv(t.picture)), t), "conv2d | layer_norm film",
            None, **with_(norm=lambda: LayerNorm2d(K))),
    Pattern("LayerNorm of a sample", lambda m, t: film(F.layer_norm(m.conv(t.picture), (K, 9, 7)), t),
            "conv2d | layer_norm film"),
    Pattern("FiLM among permuted", convnext, "conv2d | layer_norm film", None,
            **with_(norm=lambda: nn.LayerNorm(K))),
)  # fmt: skip


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
