"""What `fuse` does to a model and its copies, and how it gets on with who else changes methods, classes and modules."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from film_kernels import find_film, fuse
from tests.helpers.conversion.equality import counted_calls, fused_copy
from tests.helpers.conversion.net import ARGS, Net, check, plain_like
from tests.helpers.conversion.spellings import K, tall


class Around(nn.Module):
    def __init__(self, *nets: nn.Module) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, x, g):
        return sum(net(x, g) for net in self.nets)


def test_no_class_is_made():
    registry = {}

    class Registered(Net):
        def __init_subclass__(cls, *, key, **options):
            super().__init_subclass__(**options)
            assert key not in registry
            registry[key] = cls

    class Mine(Registered, key="mine"):
        pass

    model = fuse(Mine())
    assert registry == {"mine": Mine} and type(model) is Mine
    check(model, plain_like(model))


def test_mode_and_dtype_have_one_owner():
    model = Around(Net()).train()
    fused = fuse(model)
    model.eval()
    assert not fused.training and not fused.nets[0].training
    model.half()
    assert {p.dtype for p in fused.parameters()} == {torch.float16}


def test_what_is_called_by_itself_is_fused_and_what_is_nested_is_one_graph():
    class Halves(nn.Module):
        """The convolution in one module, FiLM in another, and both with something around it."""

        def __init__(self):
            super().__init__()
            self.stem, self.film = nn.Sequential(nn.Conv2d(3, K, 3, padding=1), nn.ReLU()), Film()

        def forward(self, x, g):
            return self.film(self.stem(x), g)

    class Film(nn.Module):
        def forward(self, x, g):
            return x * tall(g)

    model = Around(Halves(), Net())
    fused = fused_copy(model)
    check(fused, model, 2)
    for part, plain in zip(fused.nets, model.nets, strict=True):
        check(part, plain)
        check(part.forward, plain.forward)
    sites = find_film(fused, ARGS)
    assert [site.path for site in sites] == ["nets.0.stem.0", "nets.1.conv"] and all(site.fusable for site in sites)
    assert [site.path for site in find_film(fused)] == ["nets.0.stem.0", "nets.1.conv"]


def test_a_part_then_the_whole_and_the_whole_then_a_part():
    net = Net()
    model, plain = Around(net, net), copy.deepcopy(Around(net, net))
    for order in ((net, model), (model, net)):
        for one in order:
            fuse(one)
        check(model, plain, 2)
        check(net, plain.nets[0])
    check(Around(net), plain.nets[0])  # given to a module that is not fused
    check(nn.ModuleDict({"net": net})["net"], plain.nets[0])


def hooked(module, log):
    """Accelerate's way to see every call: a forward of the instance's own."""
    module._old_forward = module.forward

    def new_forward(module, *args):
        log.append(module)
        return module._old_forward(*args) * 2

    module.forward = functools.update_wrapper(functools.partial(new_forward, module), module._old_forward)


def test_a_forward_of_the_instances_own():
    for orders in (("hook", "fuse"), ("fuse", "hook"), ("fuse", "hook", "fuse")):
        model, log = Net(), []
        for order in orders:
            fuse(model) if order == "fuse" else hooked(model, log)
        check(model, plain_like(model, strength=2.0))
        assert log == [model]
        other = copy.deepcopy(model)
        nn.init.ones_(other.conv.weight)
        check(other, plain_like(other, strength=2.0))
        if orders == ("fuse", "hook"):
            model.forward = model._old_forward  # as the hook is removed
            check(model, plain_like(model))


def test_methods_that_the_class_does_not_have():
    model = nn.Module()
    model.conv = nn.Conv2d(3, K, 3, padding=1)
    plain = copy.deepcopy(model)
    for one in (model, plain):
        one.forward = functools.partial(Net.forward, one)
        one.encode = functools.partial(Net.forward, one)
        one.strength = 2.0
    fuse(model, methods=("encode",))
    for other in (model, copy.deepcopy(model), copy.copy(model)):
        check(other, plain)
        check(other.encode, plain.encode)


def test_the_class_may_change():
    class Twice(Net):
        def forward(self, x, g):
            return super().forward(x, g) * 2

    model = fuse(Net())
    model(*ARGS)
    model.__class__ = Twice
    check(model, plain_like(model))
    weight = Net()
    fused = fused_copy(weight)
    for one in (weight, fused):
        parametrizations.weight_norm(one.conv)
    check(fused, weight)
    for one in (weight, fused):
        parametrize.remove_parametrizations(one.conv, "weight")
    check(fused, weight)


def test_inner_modules_may_be_replaced():
    class Lora(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.down, self.up = base, nn.Conv2d(3, 2, 1), nn.Conv2d(2, K, 1)

        def forward(self, x):
            return self.base(x) + self.up(self.down(x))

    model = fuse(Net())
    model(*ARGS)
    plain = plain_like(model)
    model.conv = plain.conv = Lora(model.conv)
    check(model, plain, calls=0)
    model.conv = plain.conv = model.conv.base
    check(model, plain)


def test_lazy_layers():
    class Lazy(Net):
        def __init__(self):
            super().__init__()
            self.conv = nn.LazyConv2d(K, 3, padding=1)

    model = fuse(Lazy())
    with counted_calls() as calls:
        found = model(*ARGS)
    assert len(calls) == 1 and type(model.conv) is nn.Conv2d
    plain = Net()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(found, plain(*ARGS), rtol=1e-4, atol=1e-5)


def test_modules_with_attributes_by_rules_of_their_own():
    class Forwarding(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Net()

        def __getattr__(self, name):
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("inner"), name)

        def forward(self, *args):
            return self.inner(*args)

    class Frozen(Net):
        __slots__ = ("extra",)

        def __init__(self):
            super().__init__()
            self.is_frozen = True

        def __setattr__(self, name, value):
            assert not self.__dict__.get("is_frozen"), name
            super().__setattr__(name, value)

        @property
        def _film_kernels_fused(self):
            return "mine"

    class Static(Net):
        @staticmethod
        def forward(x, g):
            return x * g.mean()

    for kind, calls in ((Forwarding, 1), (Frozen, 1), (Static, 0)):
        model = fuse(kind())
        check(model, plain_like(model), calls)


def test_what_wraps_a_model_and_what_is_compiled_is_left_alone():
    model = Net()
    compiled = torch.compile(model, backend="eager")
    fuse(compiled)
    check(model, plain_like(model))
    check(compiled, plain_like(model), calls=0)
    scripted = torch.jit.script(Net())
    before = dict(scripted.__dict__)
    assert fuse(scripted) is scripted and dict(scripted.__dict__) == before
    both = Around(scripted, model)
    plain = Around(scripted, plain_like(model))
    fuse(both)
    check(both, plain, 1)


def test_torchscript_sees_the_users_own_code():
    offset = F.hardtanh  # of the closure

    class Scripted(Net):
        def forward(self, x, g):
            return offset(F.relu(self.conv(x)) * g[:, :, None, None])

        @torch.jit.export
        def doubled(self, x, g):
            return F.relu(self.conv(x)) * g[:, :, None, None] * 2

        @torch.jit.ignore
        def other(self, x, g):
            return self.conv(x) * tall(g)

    model = fuse(Scripted())
    scripted = torch.jit.script(model)
    check(scripted, plain_like(model), calls=0)
    check(scripted.doubled, plain_like(model).doubled, calls=0)
    check(model.doubled, plain_like(model).doubled)


@pytest.mark.parametrize("when", ["before", "after"])
def test_module_compile(when):
    model = Net()
    if when == "before":
        model.compile(backend="eager")
    fuse(model)
    if when == "after":
        model.compile(backend="eager")
    check(model, plain_like(model), calls=0)
    check(model.forward, plain_like(model))
