"""What a match knows of its norm, however that is written."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from film_kernels.conversion.capture import _run, _symbolic
from film_kernels.conversion.matching import matches
from film_kernels.conversion.records import Norm

K = 6


def tall(t):
    return t[:, :, None, None]


class Model(nn.Module):
    """conv -> norm -> FiLM."""

    def __init__(self, write) -> None:
        super().__init__()
        self.conv, self.write = nn.Conv2d(3, K, 3), write
        self.group, self.instance = nn.GroupNorm(3, K, eps=1e-3), nn.InstanceNorm2d(K, affine=True)
        self.layer, self.batch = nn.LayerNorm(K, eps=1e-6), nn.BatchNorm2d(K)
        self.scale, self.shift = nn.Parameter(torch.ones(K)), nn.Parameter(torch.zeros(K))

    def forward(self, x, g, b):
        return self.write(self, self.conv(x)) * tall(g) + tall(b)


def group_norm_32(m, h):
    return F.group_norm(h.float(), 2, m.scale, m.shift, 1e-3).type(h.dtype)


def permuted(m, h):
    return F.layer_norm(h.permute(0, 2, 3, 1), (K,), m.scale, None, 1e-6).permute(0, 3, 1, 2)


def transposed(m, h):
    return F.rms_norm(h.flatten(2).transpose(1, 2), (K,), m.scale, 1e-6).transpose(1, 2).view(h.shape)


def rms(m, h):
    return h * torch.rsqrt(h.pow(2).mean(1, keepdim=True) + 1e-6)


def l2(m, h):
    return h / h.norm(dim=1, keepdim=True).clamp(min=1e-6)


def layer(m, h):
    mean = h.mean(1, keepdim=True)
    return (h - mean) * torch.rsqrt(h.var(1, keepdim=True, unbiased=False) + 1e-5)


def unbiased(m, h):
    return (h - h.mean(1, keepdim=True)) / (h.var(1, keepdim=True) + 1e-5).sqrt()


def instance(m, h):
    v, mean = torch.var_mean(h, dim=(2, 3), keepdim=True, correction=0)
    return (h - mean) / torch.sqrt(v + 1e-4)


def scaled_length(m, h):
    return h / (h.norm(dim=1, keepdim=True) * K**-0.5).clamp(min=1e-6)


SPELLINGS = {  # kind, spelling, dims, groups, eps, and whether it has a weight and a bias
    "nn.GroupNorm": (lambda m, h: m.group(h), ("group", "any", None, 3, 1e-3, "wb")),
    "F.group_norm": (lambda m, h: F.group_norm(h, 2), ("group", "function", None, 2, 1e-5, "")),
    "by keywords": (lambda m, h: F.group_norm(h, num_groups=2, eps=1.0), ("group", "function", None, 2, 1.0, "")),
    "torch.group_norm": (
        lambda m, h: torch.group_norm(h, num_groups=2, weight=m.scale), ("group", "function", None, 2, 1e-5, "w")),
    "GroupNorm32": (group_norm_32, ("group", "function", None, 2, 1e-3, "wb")),
    "nn.InstanceNorm2d": (lambda m, h: m.instance(h), ("instance", "any", None, None, 1e-5, "wb")),
    "F.instance_norm": (lambda m, h: F.instance_norm(h, eps=1e-2), ("instance", "function", None, None, 1e-2, "")),
    "nn.BatchNorm2d": (lambda m, h: m.batch(h), ("batch", "any", None, None, 1e-5, "wb")),
    "F.layer_norm of all": (
        lambda m, h: F.layer_norm(h, (K, 6, 5)), ("layer", "function", (-3, -2, -1), None, 1e-5, "")),
    "permuted nn.LayerNorm": (
        lambda m, h: m.layer(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), ("layer", "written", (1,), None, 1e-6, "wb")),
    "permuted F.layer_norm": (permuted, ("layer", "written", (1,), None, 1e-6, "w")),
    "transposed F.rms_norm": (transposed, ("rms", "written", (1,), None, 1e-6, "w")),
    "F.normalize": (lambda m, h: F.normalize(h, dim=1), ("l2", "function", (1,), None, 1e-12, "")),
    "F.normalize of sums": (
        lambda m, h: F.normalize(h, p=1.0, dim=1), ("statistics", "function", (1,), None, 1e-12, "")),
    "written RMSNorm": (rms, ("rms", "written", (1,), None, 1e-6, "")),
    "written length": (l2, ("l2", "written", (1,), None, 1e-6, "")),
    "written LayerNorm": (layer, ("layer", "written", (1,), None, 1e-5, "")),
    "written InstanceNorm": (instance, ("instance", "written", (2, 3), None, 1e-4, "")),
    "an unbiased variance": (unbiased, ("statistics", "written", (1,), None, None, "")),
    "a length with a factor": (scaled_length, ("statistics", "written", (1,), None, None, "")),
}  # fmt: skip
NEEDS_SHAPES = {"permuted nn.LayerNorm", "permuted F.layer_norm", "transposed F.rms_norm", "written InstanceNorm"}


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("name", SPELLINGS)
def test_what_is_known_of_a_norm(name, traced):
    write, (kind, spelling, dims, groups, eps, affine) = SPELLINGS[name]
    model = Model(write)
    if traced and name in NEEDS_SHAPES:
        pytest.skip("a symbolic trace knows no shapes")
    inputs = (torch.randn(2, 3, 8, 7), torch.randn(2, K), torch.randn(2, K))
    graph = (_symbolic(model, "") if traced else _run(model, inputs, {})[0]).graph
    (match,) = matches(graph)
    found = [link.operation for link in (*match.front, *match.links)]
    (norm,) = (one for one in found if isinstance(one, Norm))
    assert norm.source in (match.root.node, *(link.operation.node for link in match.front)) and norm.channels == 1
    assert match.norm is norm
    assert (norm.kind, norm.dims, norm.groups, norm.eps) == (kind, dims, groups, eps)
    assert norm.spelling in ("module", "function") if spelling == "any" else norm.spelling == spelling
    assert (norm.weight is not None, norm.bias is not None) == ("w" in affine, "b" in affine)
