"""`fuse`: a model whose FiLM sites run as one call each."""

from __future__ import annotations

import inspect
import types
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import nn

from ..checks import check_choice
from ..problems.conv_film import KEEPS
from .capture import Inputs, check_model, sites_of
from .dynamo import say_if_off
from .method import install
from .own_layers import methods_with_layers, modules_to_fuse
from .swap import Wishes

Model = TypeVar("Model", bound=nn.Module)


def fuse(
    model: Model,
    example_inputs: Inputs = None,
    *,
    methods: Sequence[str] = (),
    norms: bool = True,
    convolutions: bool = False,
    frozen: bool = False,
    keep: str = "fast",
) -> Model:
    """Make calls of `film_kernels.conv_film` and `norm_film` of the fusable sites in `model`, which is changed itself.

    It is changed in place, as by `model.compile()`, because a second module beside it would drift apart from it: in
    mode, hooks, attributes, and in whatever knows modules by their class. What `model(...)` and `model.forward(...)`
    run is all that changes: class, parameters, buffers, submodules, hooks, state_dict and signatures are what they
    were. To compare with the model as it was, make a `copy.deepcopy` of it first.

    On a CPU a site is left as it is where one call would not be faster: `film_kernels.find_film` says "not faster
    here". Where a backend is pinned while the model is captured, all sites are taken.

    A call goes through Dynamo, which captures the graphs in it, swaps the sites there, and runs everything else as it
    was: control flow is followed at every call, what cannot be captured stays Python, and where mode, hooks, shapes,
    dtypes or other arguments change, sites are found anew. (Of each method 1024 captures are kept; the next begins with
    none.) `torch.compile(model, backend="film_kernels")` is the same with Inductor behind it. Fused are

    - forward of the model, and of its modules with a convolution or norm, for those that are called by themselves, as
      `net` in a method `policy.select_action`. A module that is called from another is captured with it, so that a
      convolution and its FiLM may stand in two modules;
    - other methods that call a convolution or norm of their module's own and return something, as `encode` in
      `def encode(self, x, g): return self.conv(x).relu() * g`, unless they loop over anything but those.
      `@torch.compiler.disable` on one keeps it as it is;
    - the `methods` that are named. Of others, what runs in them beside fused modules runs as it is.

    Copies (copy, deepcopy, pickle, torch.save of the whole model) are fused too, and independent of the model. (Only
    whoever copies a module's `__dict__` by hand must fuse the copy, whose methods are those of the first until then.)
    A module put into the model later is a part of its forward as any other is; to have it fused where it is called by
    itself, fuse the model again.

    Under torch.compile, torch.export, torch.jit, torch.fx, torch.func, forward-mode AD and hooks on all modules there
    are, in DataParallel's replicas, and, with a warning, where Dynamo is turned off, the model's methods run as they
    were, unfused. As after `model.compile()`, a model that is dropped is freed by Python's garbage collector.

    Args:
        model: any module.
        example_inputs: as for `film_kernels.find_film`. With them, sites are looked for at once, and a model in which
            none is fusable, in the mode in which it is, is left as it is, unless `methods` are named. Without them,
            they are looked for when it is called.
        methods: names of more methods: of the model, "encode", or of a module in it, "net.encode".
        convolutions: every other conv1d and conv2d whose sum the CPU kernels make faster than PyTorch's own, by fewer
            products or by tiles, is one of theirs too, with its bias, a BatchNorm in eval and an activation behind it.
            Of a map that was enlarged to twice its size by repeating positions it is four of the smaller map.
        frozen: for inference on a CPU, with modules that stay as they are. What is made of weights for each call is
            made once, at up to three times their size in float32, eight in 16 bits, and at most a GiB in all. And
            calls do not ask again what modules are like: their attributes, hooks and submodules are those of the first
            call of its kind, in each of the model's two modes. A write into a parameter or buffer is seen, one through
            `.data` or numpy is not. A gradient is an error where it is asked for.
        norms: a norm with an activation behind it and no FiLM is one call too, as the same models have as many of them.
            False leaves these as they are.
        keep: what fused convolutions may keep for backward, as `film_kernels.conv_film` takes it.

    Returns:
        `model`.

    Raises:
        TypeError: `model`, `example_inputs` or `methods` of another type.
        ValueError: a name in `methods` that is no method, or one of nn.Module's own; an unknown `keep`.
    """
    check_model(model)
    wishes = Wishes(norms, check_choice("keep", keep, KEEPS), convolutions, frozen)
    named = [_method(model, name) for name in _names(methods)]
    say_if_off()
    looked_for = example_inputs is not None and not named
    if looked_for and not any(site.fusable for site in sites_of(model, example_inputs, wishes)):
        return model
    for module in modules_to_fuse(model):
        for name in ("forward", *methods_with_layers(module)):
            if _is_method(module, name):
                install(module, name, wishes)
    for module, name in named:
        install(module, name, wishes)
    return model


def _names(methods: Any) -> tuple[str, ...]:
    if isinstance(methods, str) or not isinstance(methods, (Sequence, set, frozenset)):
        raise TypeError(f"methods must be a tuple of names, got {methods!r}")
    for name in methods:
        if not isinstance(name, str):
            raise TypeError(f"methods must be names, got {name!r}")
    return tuple(methods)


def _method(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    prefix, _, name = path.rpartition(".")
    try:
        module = model.get_submodule(prefix)
    except AttributeError as error:
        raise ValueError(f"methods: {path!r} is no method of the model: {error}") from None
    if not _is_method(module, name) or (name != "forward" and hasattr(nn.Module, name)):
        raise ValueError(f"methods: {path!r} is no method of the model: {type(module).__name__} defines no {name!r}")
    return module, name


def _is_method(module: nn.Module, name: str) -> bool:
    """Whether `name` is a method of the instance's own, or of its class where an entry in `__dict__` can hide it."""
    found = inspect.getattr_static(type(module), name, None)
    is_hidden = found is None or isinstance(found, types.FunctionType)
    own = module.__dict__.get(name)
    return is_hidden and (callable(own) or (found is not None and found is not getattr(nn.Module, name, None)))
