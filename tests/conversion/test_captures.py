"""What Dynamo's captures of a fused model follow: hooks, arguments without end, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as hooks

from film_kernels import find_film, fuse
from film_kernels.conversion import dynamo, method
from tests.helpers.conversion.equality import counted_calls, fused_copy
from tests.helpers.conversion.net import ARGS, Net
from tests.helpers.conversion.spellings import K, tall


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x, g):
        return self.net(x, g) + 1


ON_A_MODULE = {
    "forward": lambda m, log: m.register_forward_hook(lambda m, i, o: log.append(type(m)) or o * 2),
    "forward, keywords": lambda m, log: m.register_forward_hook(
        lambda m, i, k, o: log.append(type(m)), with_kwargs=True
    ),
    "pre": lambda m, log: m.register_forward_pre_hook(lambda m, i: log.append(type(m)) or (i[0] * 2, *i[1:])),
    "backward": lambda m, log: m.register_full_backward_hook(lambda m, i, o: log.append(type(m))),
    "backward pre": lambda m, log: m.register_full_backward_pre_hook(lambda m, o: log.append(type(m))),
}
ON_ALL = {
    "forward": lambda log: hooks.register_module_forward_hook(lambda m, i, o: log.append(type(m))),
    "pre": lambda log: hooks.register_module_forward_pre_hook(lambda m, i: log.append(type(m))),
    "backward": lambda log: hooks.register_module_full_backward_hook(lambda m, i, o: log.append(type(m))),
}


def with_and_without(model, register):
    """What is seen by a hook, and outputs and gradients with it, and then without; the model has been called before."""
    x, g = (t.clone().requires_grad_() for t in ARGS)
    log, found = [], []
    model(x, g)
    handle = register(log)
    for _ in range(2):
        y = model(x, g)
        found += [y.detach(), *torch.autograd.grad(y.square().sum(), (x, g))]
        seen = list(log)
        handle.remove()
    assert log == seen, "called after it was removed"
    return log, found


@pytest.mark.parametrize("path", ["", "net", "net.conv"])
@pytest.mark.parametrize("kind", ON_A_MODULE)
def test_hooks_that_come_later(kind, path):
    model = Around()
    plain, fused = (
        with_and_without(one, lambda log, one=one: ON_A_MODULE[kind](one.get_submodule(path), log))
        for one in (model, fused_copy(model))
    )
    assert plain[0] and fused[0] == plain[0]
    torch.testing.assert_close(fused[1], plain[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ON_ALL)
def test_hooks_on_all_modules(kind):
    model = Around()
    plain, fused = (with_and_without(one, ON_ALL[kind]) for one in (model, fused_copy(model)))
    assert len(plain[0]) == 3 and fused[0] == plain[0]
    torch.testing.assert_close(fused[1], plain[1], rtol=1e-4, atol=1e-4)


class Tasks(nn.Module):
    """A gamma for each task's name, and what else may change from call to call."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.conv, self.step, self.temperature = nn.Conv2d(3, K, 3, padding=1), 0, 1.0
        self.gammas = nn.ParameterDict({f"task{i}": nn.Parameter(torch.randn(K, 1, 1)) for i in range(number)})

    def forward(self, x, task, width=2, dtype=torch.float32):
        self.step += 1
        self.temperature *= 0.9
        y = F.relu(self.conv(x)) * self.gammas[task]
        return {"task": task, "y": (y[..., :width] * self.temperature + self.step).to(dtype), "width": width}


def calls_and_captures(monkeypatch, model, plain, arguments):
    """Compares the two on all `arguments`; how many calls were fused, and how often the whole forward was captured."""
    captures = []
    begins = dynamo.Watch.begins
    monkeypatch.setattr(dynamo.Watch, "begins", lambda watch, code: captures.append(code) or begins(watch, code))
    with counted_calls() as calls:
        for one in arguments:
            found, expected = model(*one), plain(*one)
            assert found["task"] == expected["task"] and found["width"] == expected["width"]
            torch.testing.assert_close(found["y"], expected["y"], rtol=1e-4, atol=1e-4)
            assert model.step == plain.step and model.temperature == plain.temperature
    return len(calls), sum(code.co_name.startswith("_call") for code in captures)


def test_arguments_without_end(monkeypatch):
    plain = Tasks(12)
    model, x = fused_copy(plain), ARGS[0]
    names = [(x, f"task{i}") for i in range(12)]
    fused, captures = calls_and_captures(monkeypatch, model, plain, names * 2)
    assert fused == 24 and captures <= 14
    fused, _ = calls_and_captures(monkeypatch, model, plain, [(x, "task1", 1 + i % 7, d) for i in range(14)
                                  for d in (torch.float32, torch.float64, torch.bfloat16)])  # fmt: skip
    assert fused == 42
    sizes = [(torch.randn(1 + i % 5, 3, 6 + i, 7 + i % 3), "task2") for i in range(14)]
    assert calls_and_captures(monkeypatch, model, plain, sizes)[0] == 14


def test_memory_has_an_end(monkeypatch):
    monkeypatch.setattr(method, "_MOST", 3)
    plain = Tasks(8)
    model = fused_copy(plain)
    names = [(ARGS[0], f"task{i}") for i in range(8)]
    fused, captures = calls_and_captures(monkeypatch, model, plain, names * 2)
    assert fused == 16 and captures >= 16


def test_many_captures_are_spoken_of(monkeypatch):
    monkeypatch.setattr(dynamo, "_MANY", 4)
    model = fuse(Tasks(5))
    for i in range(3):
        model(ARGS[0], f"task{i}")
    with pytest.warns(UserWarning, match=r"captured Tasks.forward 4 times, .* TORCH_LOGS=recompiles"):
        for i in range(5):
            model(ARGS[0], f"task{i}")


def test_nobody_elses_settings_are_changed():
    before = torch._dynamo.config.get_config_copy()
    seen = []

    class Asking(Net):
        def forward(self, x, g):
            torch._dynamo.graph_break()
            seen.append(torch._dynamo.config.recompile_limit)
            return super().forward(x, g)

    with counted_calls() as calls:
        fuse(Asking())(*ARGS)
    assert len(calls) == 1 and seen == [before["recompile_limit"]]
    assert torch._dynamo.config.get_config_copy() == before


class Checking(Net):
    def forward(self, x, g, limit=None):
        if limit is not None and limit > 3:
            raise ValueError("limit")
        if x.shape[1] != 3 and limit is None:
            raise KeyError("channels")
        if limit is not None and g.sum().item() < -1e6:
            raise AssertionError("sum")
        return super().forward(x, g)


def test_an_error_is_the_models_own_and_ends_nothing():
    model = Checking()
    fused = fused_copy(model)
    bad = torch.randn(2, 4, 8, 7)
    for args, error in (
        ((*ARGS, 5), ValueError),
        ((bad, ARGS[1]), KeyError),
        ((bad, ARGS[1], 1), RuntimeError),  # PyTorch's, from the convolution
        ((ARGS[0], ARGS[1] - 1e9, 1), AssertionError),
    ):
        messages = []
        for one in (model, fused):
            with pytest.raises(error) as raised:
                one(*args)
            assert type(raised.value) is error
            messages.append(str(raised.value))
        assert messages[0] == messages[1]
        for rest in ((), (1,)):
            with counted_calls() as calls:
                torch.testing.assert_close(fused(*ARGS, *rest), model(*ARGS, *rest), rtol=1e-4, atol=1e-5)
            assert len(calls) == 1, error


def test_what_dynamo_cannot_capture_is_tried_twice(monkeypatch):
    class Uncaptured(Net):
        def forward(self, x, g):
            try:
                torch._dynamo.graph_break()
                return super().forward(x, g)
            finally:
                self.ended = True

    codes = []
    begins = dynamo.Watch.begins
    monkeypatch.setattr(dynamo.Watch, "begins", lambda watch, code: codes.append(code.co_name) or begins(watch, code))
    model = fuse(Uncaptured())
    for _ in range(6):
        model(*ARGS)
    assert 1 <= codes.count("forward") <= 4


def test_numbers_read_from_tensors_between_convolution_and_film():
    class Item(Net):
        def forward(self, x, g, size):
            h = self.conv(x)
            k = size.item()
            h = h * tall(g)
            if k > 4:
                h = -h
            return torch.tanh(h[:, :k]), k, float(size)

    model = Item()
    fused = fused_copy(model)
    (site,) = find_film(model, (*ARGS, torch.tensor(3)))
    assert site.fusable and site.path == "conv"
    for k in (3, 1, 0, -2, 5, 6, 100):
        with counted_calls() as calls:
            found, *numbers = fused(*ARGS, torch.tensor(k))
        expected, *others = model(*ARGS, torch.tensor(k))
        assert len(calls) == 1 and numbers == others and [type(n) for n in numbers] == [int, float]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_sizes_from_numpy_cut_the_graph_where_they_are():
    """Dynamo ends with an error of its own at `view(n, np.prod(sizes), c)`; what stands around it is captured all the
    same, in the frame that it is in, and not module by module."""

    class Attention(nn.Module):
        def forward(self, x):
            n, c, *sizes = x.shape
            tokens = x.permute(0, 2, 3, 1).view(n, np.prod(sizes), c)
            return torch.softmax(tokens @ tokens.transpose(1, 2), -1).sum(-1)[:, :, None] + tokens

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList(nn.GroupNorm(2, K) for _ in range(4))
            self.attention = Attention()

        def forward(self, x, g):
            for norm in self.norms[:2]:
                x = F.silu(norm(x) * tall(g))
            tokens = self.attention(x)
            for norm in self.norms[2:]:
                x = F.silu(norm(x) * tall(g))
            return x, tokens

    model, args = Model(), (torch.randn(2, K, 6, 5), torch.randn(2, K))
    assert len(find_film(model, args)) == 4
    fused = fused_copy(model)
    for _ in range(2):
        with counted_calls() as calls:
            torch.testing.assert_close(fused(*args), model(*args), rtol=1e-4, atol=1e-5)
        assert len(calls) == 4
