"""What is advised about a site that is not fused: only what helps."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from film_kernels import find_film, fuse
from tests.helpers.conversion.spellings import K, Together, inputs, tall


class Site(nn.Module):
    def __init__(self, write, module) -> None:
        super().__init__()
        self.conv, self.norm, self.act, self.write = nn.Conv2d(3, K, 3), module, nn.PReLU(), write

    def forward(self, x, g, b, e):
        return self.write(self, self.conv(x), tall(g), tall(b))


def elsewhere(m, v, g, b):
    v = m.norm(v)
    return v * g + v


CASES = (  # chain, module, and what is advised or said in training and in eval; None where it is fused
    (lambda m, v, g, b: m.norm(v) * g + b, nn.BatchNorm2d(K), None, None),
    (lambda m, v, g, b: m.norm(v) * g + b, nn.BatchNorm2d(K, track_running_stats=False), None, None),
    (lambda m, v, g, b: m.norm(v) * g + v, nn.BatchNorm2d(K), None, None),
    (lambda m, v, g, b: m.norm(v) * g + b, nn.SyncBatchNorm(K), ("(model.eval(), or freeze it)",), None),
    (lambda m, v, g, b: m.norm(v) * g + b, nn.Dropout(0.5), ("(model.eval(), or move it behind FiLM)",), None),
    (lambda m, v, g, b: F.dropout(m.norm(v), training=m.training) * g, nn.SyncBatchNorm(K),
     ("dropout", "SyncBatchNorm", "(model.eval(), or freeze it, or move it behind FiLM)"), None),
    (lambda m, v, g, b: m.act(m.norm(v)) * g + b, nn.SyncBatchNorm(K),
     ("SyncBatchNorm in training", "in eval mode too: prelu is not"), ("prelu is not",)),
    (elsewhere, nn.SyncBatchNorm(K),
     ("SyncBatchNorm in training", "in eval mode too", "used elsewhere"), ("used elsewhere",)),
    (lambda m, v, g, b: F.group_norm(m.norm(v), 2).relu().tanh() * g, nn.SyncBatchNorm(K),
     ("two activations",), ("two activations",)),
    (lambda m, v, g, b: F.dropout(v, 0.5) * g, nn.Identity(), ("in every mode",), ("in every mode",)),
    (lambda m, v, g, b: F.dropout(v, 0.5, True) * g, nn.Identity(), ("dropout",), ("(move it behind FiLM)",)),
)  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
def test_advice_is_given_where_it_helps(training):
    model = Together(Site(write, module) for write, module, *_ in CASES).train(training)
    sites = find_film(model, inputs(dtype=torch.float32), norms=False)
    assert len(sites) == len(CASES)
    for site, (*_, in_training, in_eval) in zip(sites, CASES, strict=True):
        words = in_training if training else in_eval
        assert site.fusable == (words is None) == (site.reason is None), site
        if words is None:
            continue
        assert all(word in site.reason for word in words), site
        if in_eval is not None and site is not sites[-1]:  # of the last, a graph does not tell whose True it is
            assert "model.eval()" not in site.reason, site


def test_a_batch_norm_that_averages_over_all_calls():
    """Its factor is a number that is read from a tensor: Dynamo calls it between two graphs, a trace shows it."""
    model = Site(lambda m, v, g, b: m.norm(v) * g + b, nn.BatchNorm2d(K, momentum=None))
    (site,) = find_film(model)
    assert "momentum=None" in site.reason and "(model.eval(), or freeze it)" in site.reason
    (site,) = find_film(model.eval())
    assert site.operator == "conv_film"
    x, *others = inputs(dtype=torch.float32)
    plain, fused = model.train(), fuse(copy.deepcopy(model))
    for _ in range(2):
        torch.testing.assert_close(fused(x, *others), plain(x, *others), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fused.state_dict(), plain.state_dict())
