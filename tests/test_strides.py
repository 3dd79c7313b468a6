"""Strides of results: what torch.compile is told of them is what they are, and a weight's gradient has the weight's."""

from __future__ import annotations

import pytest
import torch

import film_kernels
from tests.helpers.door_calls import call, calls


def _random_layout(shape, generator):
    """Memory in any order of the dimensions, sometimes with gaps; where a size is 1, sometimes a stride of anything."""
    order = torch.randperm(len(shape), generator=generator).tolist()
    gap = torch.randint(3, (), generator=generator).item() == 0
    strides, step = [0] * len(shape), 1
    for dimension in order:
        strides[dimension] = step
        step *= shape[dimension] + gap
        if shape[dimension] == 1 and torch.randint(2, (), generator=generator):
            strides[dimension] = torch.randint(1, 50, (), generator=generator).item()
    room = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    return torch.randn(room, generator=generator).as_strided(shape, strides)


def stride_that_autograd_asks_for(weight):
    """Where the weight is dense its own, which are then those of torch.empty_like, or else those of a contiguous one:
    a gradient with others is copied on its way to `.grad`."""
    dense = torch.empty_like(weight).stride() == weight.stride()
    return weight.stride() if dense else torch.empty(weight.shape).stride()


@pytest.mark.parametrize("seed", range(3))
def test_fakes_have_the_strides_of_the_results(one_thread, seed):
    from torch._subclasses.fake_tensor import FakeTensorMode

    generator = torch.Generator().manual_seed(seed)
    draw = lambda *choices: choices[torch.randint(len(choices), (), generator=generator)]  # noqa: E731
    mode = FakeTensorMode()
    fake = lambda value: mode.from_tensor(value) if isinstance(value, torch.Tensor) else value  # noqa: E731
    seen = set()
    for _ in range(60):
        rank = draw(1, 2, 2)
        kernel = tuple(draw(1, 3) for _ in range(rank))
        input = (draw(1, 2), c := draw(1, 3, 4), *(draw(1, 5) for _ in kernel))
        right = calls(
            input, (draw(1, 5), c, *kernel), padding=tuple(k // 2 for k in kernel), stride=(1,) * rank,
            dilation=(1,) * rank, activation=draw(0, 1, 2, 3), channels_last=rank == 2 and draw(False, True),
        )  # fmt: skip
        for operator, arguments in right.items():
            for name in ("input", "weight", "grad"):
                if name in arguments:
                    arguments[name] = _random_layout(arguments[name].shape, generator)
            real = call(torch.ops.film_kernels_cpu, operator, arguments)
            with mode:
                traced = call(torch.ops.film_kernels_cpu, operator, {n: fake(v) for n, v in arguments.items()})
            if operator == "grad_input":
                real, traced = (real,), (traced,)
            for one, other in zip(real, traced, strict=True):
                assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)
                seen.add(one.stride())
            if operator == "grad_weight":
                assert real[0].stride() == stride_that_autograd_asks_for(arguments["weight"])
    assert len(seen) > 50


def check_gradients_of_turned_weights(backend, input, weight, padding, dtype, channels_last=False):
    """They have the weight's strides, whatever these are, and the values of a contiguous weight's gradient."""
    x, w, gamma = (torch.randn(shape).to(dtype) for shape in (input, weight, (input[0], weight[0])))
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    expected = None
    for order in ((0, 1, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0), (1, 0, 3, 2), (2, 3, 1, 0), (1, 3, 0, 2)):
        turned = w.permute(order).contiguous().permute([order.index(d) for d in range(4)]).requires_grad_()
        film = gamma.clone().requires_grad_()
        y = film_kernels.conv_film(x, turned, None, film, padding=padding, backend=backend)
        gradients = torch.autograd.grad(y.sum(), (turned, film))
        assert gradients[0].stride() == turned.stride()
        expected = expected or gradients
        for one, other in zip(gradients, expected, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("input", "weight", "padding"),
    [
        ((2, 4, 7, 8), (9, 4, 3, 3), 1),
        ((2, 4, 7, 8), (9, 4, 1, 1), 0),
        ((3, 32, 12, 12), (32, 32, 3, 3), 1),
        ((3, 32, 12, 12), (32, 32, 5, 5), 2),
        ((2, 64, 12, 12), (64, 64, 1, 3), 0),
        ((2, 1, 7, 40), (3, 1, 3, 3), 0),
        ((2, 40, 12, 12), (70, 40, 2, 3), 0),
        ((2, 16, 9, 9), (1, 16, 3, 3), 1),
    ],
    ids=str,
)
def test_the_weights_gradient_has_the_weights_strides(input, weight, padding, dtype):
    check_gradients_of_turned_weights("cpu", input, weight, padding, dtype)


@pytest.mark.parametrize("channels", [4, 16], ids=["direct", "matrix"])
def test_the_weights_gradient_of_the_cuda_kernels_has_the_weights_strides(emulator, channels):
    shape, weight = (2, channels, 7, 8), (24, channels, 3, 3)
    check_gradients_of_turned_weights("cuda", shape, weight, 1, torch.bfloat16, channels_last=True)
