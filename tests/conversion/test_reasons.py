"""What is advised about a site that is not fused: only what helps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from film_kernels import find_film
from tests.helpers.conversion.spellings import K, Together, inputs, tall


class Site(nn.Module):
    def __init__(self, write, module) -> None:
        super().__init__()
        self.conv, self.norm, self.act, self.write = nn.Conv2d(3, K, 3), module, nn.PReLU(), write

    def forward(self, x, g, b, e):
        return self.write(self, self.conv(x), tall(g), tall(b))


def elsewhere(m, v, g, b):
    return m.norm(v) * g + v


CASES = (  # chain, module, and what is advised or said in training and in eval; None where it is fused
    (lambda m, v, g, b: m.norm(v) * g + b, nn.BatchNorm2d(K), ("(model.eval(), or freeze it)",), None),
    (lambda m, v, g, b: m.norm(v) * g + b, nn.Dropout(0.5), ("(model.eval(), or move it behind FiLM)",), None),
    (lambda m, v, g, b: m.norm(F.dropout(v, training=m.training)) * g, nn.BatchNorm2d(K),
     ("dropout", "BatchNorm", "(model.eval(), or move it behind FiLM, or freeze it)"), None),
    (lambda m, v, g, b: m.act(m.norm(v)) * g + b, nn.BatchNorm2d(K),
     ("BatchNorm in training", "in eval mode too: prelu is not"), ("prelu is not",)),
    (elsewhere, nn.BatchNorm2d(K),
     ("BatchNorm in training", "in eval mode too", "used elsewhere"), ("used elsewhere",)),
    (lambda m, v, g, b: F.group_norm(m.norm(v), 2).relu().tanh() * g, nn.BatchNorm2d(K),
     ("in eval mode too", "group_norm", "two activations"), ("group_norm", "two activations")),
    (lambda m, v, g, b: m.norm(v) * g + b, nn.BatchNorm2d(K, track_running_stats=False),
     ("without running statistics",), ("without running statistics",)),
    (lambda m, v, g, b: F.dropout(v, 0.5) * g, nn.Identity(), ("in every mode",), ("in every mode",)),
    (lambda m, v, g, b: F.dropout(v, 0.5, True) * g, nn.Identity(), ("dropout",), ("(move it behind FiLM)",)),
)  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
def test_advice_is_given_where_it_helps(training):
    model = Together(Site(write, module) for write, module, *_ in CASES).train(training)
    sites = find_film(model, inputs(dtype=torch.float32))
    assert len(sites) == len(CASES)
    for site, (*_, in_training, in_eval) in zip(sites, CASES, strict=True):
        words = in_training if training else in_eval
        assert site.fusable == (words is None) == (site.reason is None), site
        if words is None:
            continue
        assert all(word in site.reason for word in words), site
        if in_eval is not None and site is not sites[-1]:  # of the last, a graph does not tell whose True it is
            assert "model.eval()" not in site.reason, site
