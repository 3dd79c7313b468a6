"""Calls like one before take a short way: no call is taken for another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from film_kernels import conv_film, norm_film, repeated
from film_kernels.backends import forget_choices
from tests.helpers.repeated_calls import FRONTS, OPTIONS, K, check, leaves_of, prepared


@pytest.fixture(autouse=True)
def nothing_remembered():
    forget_choices()
    assert not repeated._ways


@FRONTS
@pytest.mark.parametrize("rows", [(2, K), (2, K, 1, 1), (1, K, 1, 1), (1, K), (K,), (K, 1, 1)], ids=str)
def test_later_calls_are_short_and_give_the_same(front, rows):
    leaves = leaves_of(front, rows)
    check(front, leaves, exact=rows[0] == 2)
    short = len(rows) in (2, 4) and rows != (1, K)
    with prepared() as counted, torch.no_grad():
        front(**leaves, **OPTIONS[front])
    with prepared() as counted_with_gradients:
        front(**leaves, **OPTIONS[front])
    assert counted.call_count == counted_with_gradients.call_count == (0 if short else 1)


@FRONTS
def test_tensors_of_other_kinds_are_other_calls(front):
    """All one after another, and then once more in another order."""
    one = leaves_of(front)
    wide = {**one, "input": one["input"].detach().contiguous(memory_format=torch.channels_last).requires_grad_()}
    gaps = {**one, "input": torch.randn(2, K, 10, 6)[:, :, ::2].requires_grad_()}
    transposed = {**one, "input": torch.randn(2, K, 6, 5).mT.requires_grad_()}
    kinds = [
        one, wide, gaps, transposed, leaves_of(front, (2, K)), leaves_of(front, dtype=torch.float64),
        leaves_of(front, shape=(2, K, 6, 5)), {**one, "bias": None}, {**one, "beta": None}, {**one, "gamma": None},
        {**one, "gamma": None, "beta": one["beta"].detach()[:, :, 0, 0].requires_grad_()},
        {**one, "weight": nn.Parameter(one["weight"].detach())},
        {**one, "input": one["input"].detach()}, {**one, "weight": one["weight"].detach()},
        {name: leaf.detach() for name, leaf in one.items()},
    ]  # fmt: skip
    if front is conv_film:
        weight = one["weight"].detach().contiguous(memory_format=torch.channels_last).requires_grad_()
        kinds.append({**one, "weight": weight})
    else:
        half = leaves_of(front, dtype=torch.bfloat16)
        kinds += [half, {**half, **{name: half[name].detach().float().requires_grad_() for name in ("weight", "bias")}}]
    for leaves in (*kinds, *reversed(kinds)):
        check(front, leaves)


@FRONTS
@pytest.mark.parametrize(
    "wrong",
    [
        {"bias": torch.randn(K + 1)}, {"bias": torch.randn(K).double()}, {"gamma": torch.randn(2, 1, 1, K)},
        {"gamma": torch.randn(2, K, 1, 1).double()}, {"beta": torch.randn(3, K)}, {"beta": 1.0}, {"input": None},
        {"bias": torch.randn(K).to_sparse()}, {"gamma": torch.randn(2, K, 1, 1).to("meta")},
        {"beta": torch.randn(2, K, 1, 1).to_sparse()}, {"input": torch.randn(2, K, 5, 6).to_sparse()},
        {"weight": "w"}, {"activation": "rleu"}, {"activation": 0}, {"activation": ["relu"]}, {"negative_slope": "1"},
        {"gamma_offset": float("nan")}, {"film_position": "before"}, {"gamma_offset": torch.ones(2)},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_wrong_is_said_after_what_was_right(front, wrong):
    leaves = leaves_of(front)
    front(**leaves, **OPTIONS[front])
    for _ in range(2):
        said = []
        for pin in (None, "cpu"):
            with pytest.raises((TypeError, ValueError)) as error:
                front(**{**leaves, **OPTIONS[front], **wrong}, backend=pin)
            said.append((type(error.value), str(error.value)))
        assert said[0] == said[1]
    check(front, leaves)


def test_options_are_told_apart():
    """1 from 1.0, which is no stride, and what stands in a list from what was there."""
    every = leaves_of(conv_film)
    for name in ("stride", "padding", "dilation", "groups"):
        leaves = every
        check(conv_film, leaves, **{name: 1})
        check(conv_film, leaves, **{name: True})
        check(conv_film, leaves, **{name: np.int64(1)})
        if name == "groups":
            leaves = {**every, "weight": every["weight"].detach()[:, : K // 2].requires_grad_()}
        check(conv_film, leaves, **{name: 2})
        for wrong in (1.0, 2.0, np.float32(1.0), torch.tensor(1.0), "1"):
            with pytest.raises((TypeError, ValueError), match=name):
                conv_film(**leaves, **{"padding": 1, name: wrong})
        if name != "groups":
            check(conv_film, leaves, **{name: (1, 2)})
            check(conv_film, leaves, **{name: (True, 2)})
            with pytest.raises(TypeError, match=name):
                conv_film(**leaves, **{"padding": 1, name: (1.0, 2.0)})
            several = [1, 1]
            for value in (1, 2):
                several[:] = [value, value]
                check(conv_film, leaves, **{name: several})
    leaves = every
    for value in (0.0, 1.0, 1, True, np.float64(0.5), torch.tensor(0.5), torch.ones((), requires_grad=True)):
        check(conv_film, leaves, gamma_offset=value)
        check(conv_film, leaves, negative_slope=0.25, activation="leaky_relu", film_position="pre", keep="bits")
    offset = torch.zeros(())
    for value in (0.0, 2.0):
        offset.fill_(value)
        check(conv_film, leaves, gamma_offset=offset)
    for padding in ("same", "valid", 0):
        check(conv_film, leaves, padding=padding)
    for number in range(2000):  # numbers that are no objects of the interpreter's own come to lie where others lay
        stride = int(str(257 + number % 3))
        assert conv_film(**leaves, stride=stride, padding=300).shape[-1] == (6 + 600 - 3) // stride + 1


def test_options_of_norm_film_are_told_apart():
    leaves = leaves_of(norm_film)
    for groups in (1, 2, True, np.int64(4)):
        check(norm_film, leaves, num_groups=groups)
    for wrong in (2.0, "2", None, 3):
        with pytest.raises((TypeError, ValueError), match="num_groups"):
            norm_film(**leaves, num_groups=wrong)
    for eps in (1e-5, 1e-2, 0, 1):
        check(norm_film, leaves, eps=eps)
    for norm in ("channel", "rms", "l2"):
        check(norm_film, leaves, norm=norm, num_groups=None)
        last = {name: leaf.detach().movedim(1, -1).contiguous().requires_grad_() if leaf.dim() == 4 else leaf
                for name, leaf in leaves.items()}  # fmt: skip
        check(norm_film, last, norm=norm, num_groups=None, channel_dim=-1)
        square = leaves_of(norm_film, (K, K), shape=(K, K, K, K))
        for channel_dim in (1, -1, 3):
            check(norm_film, square, norm=norm, num_groups=None, channel_dim=channel_dim)
        with pytest.raises(TypeError, match="channel_dim"):
            norm_film(**leaves, norm=norm, channel_dim=1.0)
    mean = torch.zeros(K)
    for _ in range(2):
        norm_film(**leaves, norm="batch", running_mean=mean, running_var=torch.ones(K))
    assert mean.any()


def test_unbatched_inputs_and_those_of_the_same_shape():
    weight, x = torch.randn(K, K, 3), torch.randn(K, K)
    for _ in range(2):
        y = conv_film(x, weight, padding=1)
        torch.testing.assert_close(y, torch.conv1d(x, weight, padding=1).relu())
        both = conv_film(x[None], weight, padding=1)
        assert torch.equal(both[0], y) and both.dim() == 3
