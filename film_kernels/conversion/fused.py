"""`fuse`: a model whose FiLM sites run as one call each."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import fx, nn

from .. import ops
from .capture import Inputs, check_model, find_film, function_of_its_own
from .compiler import as_it_is
from .swap import swap

Model = TypeVar("Model", bound=nn.Module)
_CALL = "_film_kernels_call"


def fuse(model: Model, example_inputs: Inputs = None) -> Model:
    """`model` with its fusable FiLM sites swapped for calls of `film_kernels.conv_film`.

    The result is a module of the same class, with the same parameters, buffers and submodules under the same names:
    shared, not copied. It is used in place of `model`: to train, to save, to wrap in DistributedDataParallel. Its
    forward goes through Dynamo, which captures the graphs in it, swaps the sites there, and runs everything else as it
    was: control flow is followed at every call, what cannot be captured stays Python, and where mode, shapes or
    dtypes change, sites are found anew. `torch.compile(model, backend="film_kernels")` is the same with Inductor behind
    it.

    Under torch.compile, torch.export, torch.func and forward-mode AD, the model's own forward runs, unfused.

    Args:
        model: any module.
        example_inputs: as for `film_kernels.find_film`. With them, sites are looked for at once, and a model in which
            none is fusable, in the mode in which it is, is returned as it is. Without them, they are looked for when it
            is called.

    Raises:
        TypeError: `model` or `example_inputs` of another type.
    """
    check_model(model)
    if isinstance(model, _Fused):
        return model
    if example_inputs is not None and not any(site.fusable for site in find_film(model, example_inputs)):
        return model
    fused = _rebuild(type(model))
    fused.__dict__.update(
        {name: value.copy() if _is_table(name, value) else value for name, value in model.__dict__.items()}
    )
    return fused  # type: ignore[return-value]


def _is_table(name: str, value: Any) -> bool:
    """Whether an attribute is one of nn.Module's own tables: parameters, buffers, submodules, hooks."""
    return name.startswith("_") and isinstance(value, dict)


class _Fused(nn.Module):
    """Stands before the model's own class among the bases of the fused one."""

    _film_kernels_plain: type[nn.Module]

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())  # type: ignore[misc]
        state.pop(_CALL, None)
        return state

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _rebuild, (self._film_kernels_plain,), self.__getstate__()


def _forward(self: _Fused, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if _is_watched() or any(isinstance(value, fx.Proxy) for value in (*args, *kwargs.values())):
        return self._film_kernels_plain.forward(self, *args, **kwargs)
    call = self.__dict__.get(_CALL)
    if call is None:
        call = self.__dict__[_CALL] = torch.compile(function_of_its_own(_call), backend=_swap_and_run)
    return call(types.MethodType(self._film_kernels_plain.forward, self), args, kwargs)


@functools.cache
def _class_of(plain: type[nn.Module]) -> type[nn.Module]:
    @functools.wraps(plain.forward)  # its signature is asked for
    def forward(self: _Fused, *args: Any, **kwargs: Any) -> Any:
        return _forward(self, args, kwargs)

    names = {"__module__": plain.__module__, "__qualname__": plain.__qualname__, "__doc__": plain.__doc__}
    return type(plain.__name__, (_Fused, plain), {**names, "_film_kernels_plain": plain, "forward": forward})


def _rebuild(plain: type[nn.Module]) -> nn.Module:
    fused = _class_of(plain)  # type: ignore[arg-type]  # a class has a hash
    return fused.__new__(fused)


def _call(forward, args, kwargs):
    return forward(*args, **kwargs)


def _swap_and_run(module: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    swap(module)
    return as_it_is(module)


def _is_watched() -> bool:
    """Whether someone traces or transforms the model, and must see its own forward."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or ops.is_transformed()
        or torch._C._len_torch_dispatch_stack() > 0
    )
