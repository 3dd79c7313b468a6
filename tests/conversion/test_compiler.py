"""`torch.compile(model, backend="film_kernels")`: the sites of Dynamo's graph in one call each, and Inductor behind."""

from __future__ import annotations

import importlib.metadata

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from film_kernels.conversion.compiler import film_kernels
from film_kernels.conversion.swap import Wishes, found_in
from tests.helpers.conversion.equality import assert_as_good, counted_calls, outputs_and_gradients
from tests.helpers.conversion.spellings import K, batch_norm, tall


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, K, 3, padding=1)
        self.norm = batch_norm()

    def forward(self, x, g, b):
        return F.silu(tall(g) * torch.relu(self.norm(self.conv(x))) + tall(b))


def draws(*batches, dtype=torch.float32):
    return [tuple(torch.randn(s, dtype=dtype) for s in ((n, 3, 8, 7), (n, K), (n, K))) for n in batches]


@pytest.fixture(autouse=True)
def _fresh_caches():
    torch._dynamo.reset()


@pytest.mark.parametrize("options", [None, {"backend": "eager"}, {"backend": "aot_eager"}], ids=str)
def test_trains_as_the_model_does(options):
    torch.manual_seed(2)
    model = Block()
    with counted_calls() as calls:
        compiled = torch.compile(model, backend=film_kernels, fullgraph=True, options=options)
        assert_as_good(model, compiled, draws(2, 3, 4))  # the third is compiled for any batch
    assert calls
    assert set(calls) == {"relu post"}


def test_inductor_calls_the_operator():
    model, ((x, g, b),) = Block().requires_grad_(False), draws(2)
    events = []
    for m in (model, torch.compile(model, backend=film_kernels)):
        m(x, g, b)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            m(x, g, b)
        events.append({event.name for event in profile.events()})
    assert "aten::convolution" in events[0] and "film_kernels::conv_film" not in events[0]
    assert "film_kernels::conv_film" in events[1] and "aten::relu" not in events[1]


class Mixed(nn.Module):
    """A convolution with FiLM, perhaps with an activation, and perhaps another convolution behind it."""

    def __init__(self, convolution, activation, others):
        super().__init__()
        self.conv, self.activation = convolution(64, 64, 3, padding=1), activation
        self.others = nn.Sequential(*(convolution(64, 64, 3, padding=1) for _ in range(others)))

    def forward(self, x, g):
        return self.others(self.activation(self.conv(x) * g.view(*g.shape, *(1 for _ in x.shape[2:]))))


@pytest.mark.judged
@pytest.mark.parametrize(("convolution", "activation", "others", "format", "left"), [
    (nn.Conv2d, nn.ReLU(), 1, torch.contiguous_format, True),  # Inductor turns what the others read
    (nn.Conv2d, nn.ReLU(), 1, torch.channels_last, False),
    (nn.Conv2d, nn.ReLU(), 0, torch.contiguous_format, False),
    (nn.Conv1d, nn.ReLU(), 1, torch.contiguous_format, False),
    (nn.Conv1d, nn.PReLU(), 1, torch.contiguous_format, True),  # which takes a pass in any case
])  # fmt: skip
def test_what_inductor_is_as_fast_at_is_left_to_it(convolution, activation, others, format, left):
    model = Mixed(convolution, activation, others).requires_grad_(False)
    x = torch.randn(2, 64, *(24 for _ in model.conv.kernel_size)).contiguous(memory_format=format)
    reasons = []

    def look(module, _):
        for inductor in (False, True):
            (site,) = found_in(module.graph, Wishes(before_inductor=inductor))
            reasons.append(None if site.reason is None else site.reason.text)
        return module.forward

    torch.compile(model, backend=look, fullgraph=True)(x, torch.randn(2, 64))
    as_fast = "not faster here: Inductor has as few passes over memory, in the memory format that it chooses"
    assert reasons == [None, as_fast if left else None]


@pytest.mark.judged
@pytest.mark.parametrize("options", [None, {"backend": "eager"}], ids=str)
def test_norms_are_inductors(options):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.GroupNorm(4, 32)

        def forward(self, x, g):
            return nn.functional.silu(self.norm(x) * g[:, :, None, None])

    model, x, g = Block().requires_grad_(False), torch.randn(2, 32, 40, 40), torch.randn(2, 32)
    with counted_calls() as calls:
        found = torch.compile(model, backend=film_kernels, options=options)(x, g)
    torch.testing.assert_close(found, model(x, g))
    assert bool(calls) == (options is not None)


def test_options_and_mode_are_inductors():
    model, ((x, g, b),) = Block(), draws(2)
    compiled = torch.compile(model, backend=film_kernels, options={"epilogue_fusion": False})
    torch.testing.assert_close(compiled(x, g, b), model(x, g, b), rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
    wrong = torch.compile(model, backend=film_kernels, options={"backend": "eager", "epilogue_fusion": False})
    with pytest.raises(Exception, match="epilogue_fusion"):
        wrong(x, g, b)
    with pytest.raises(ValueError, match="reduce-overhead"):
        film_kernels(torch.fx.symbolic_trace(model), [x, g, b], mode="reduce-overhead", options={"backend": "eager"})


def test_checkpointed_blocks():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Block()

        def forward(self, *args):
            return torch.utils.checkpoint.checkpoint(self.block, *args, use_reentrant=False)

    model, (args,) = Checkpointed(), draws(2)
    with counted_calls() as calls:
        found = outputs_and_gradients(
            torch.compile(model, backend=film_kernels, options={"backend": "aot_eager"}), args
        )
    assert calls
    assert set(calls) == {"relu post"}
    torch.testing.assert_close(found, outputs_and_gradients(model, args), rtol=1e-4, atol=1e-4)


def test_the_installed_package_has_the_entry_point():
    found = importlib.metadata.distribution("film_kernels").entry_points.select(group="torch_dynamo_backends")
    assert [entry.name for entry in found] == ["film_kernels"], "install the package again: pyproject.toml has changed"
    assert found["film_kernels"].load() is film_kernels
    assert "film_kernels" in torch._dynamo.list_backends()
    model, ((x, g, b),) = Block(), draws(2)
    with counted_calls() as calls:
        torch.compile(model, backend="film_kernels", options={"backend": "eager"})(x, g, b)
    assert calls == ["relu post"]
