"""The smallest model with a site, to be fused and compared with what is not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers.conversion.equality import counted_calls
from tests.helpers.conversion.spellings import K, tall


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.strength = nn.Conv2d(3, K, 3, padding=1), 1.0

    def forward(self, x, g):
        return F.relu(self.conv(x)) * tall(g) * self.strength


ARGS = torch.randn(2, 3, 8, 7), torch.randn(2, K)


def check(fused, model, calls: int = 1) -> None:
    """Equal, with that many fused calls."""
    with counted_calls() as counted:
        found = fused(*ARGS)
    assert len(counted) == calls
    with counted_calls() as counted:
        expected = model(*ARGS)
    assert not counted, "to be compared with what is not fused"
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def plain_like(model, **attributes):
    """A module of the class of `model`, with its parameters and without what fuse did."""
    plain = type(model)()
    plain.load_state_dict(model.state_dict())
    plain.__dict__.update(attributes)
    return plain
