"""What stands in a module's `__dict__` before one of its methods: the same method, captured, its FiLM sites swapped."""

from __future__ import annotations

import functools
import itertools
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.fx import _symbolic_trace as symbolic_trace
from torch.nn.modules import module as _hooks

from .. import ops
from .compiler import as_it_is
from .dynamo import Watch, captured, say_if_off
from .numpy_constants import fold_numpy
from .prepare import prepare
from .swap import Wishes, swap
from .upsampled import fold_upsampling

_REDUCE, _REPLICATE = "__reduce_ex__", "_replicate_for_data_parallel"
# Captures that are kept of one method, before it begins anew: arguments may change without end, memory and the time to
# look a capture up may not grow with them.
_MOST = 1024
_FUSED = "_film_kernels_fused"
_CALL = "_film_kernels_call"  # no name that a method's closure may have too


class Fused:
    """One method of one module. The former method runs where somebody else traces or transforms the module; otherwise
    it runs in the graphs that Dynamo captures of it, with every fused method that it calls captured in the same."""

    def __init__(self, name: str, own: str | None, *wishes: Any) -> None:
        """`own` is the key under which the instance has a former method of its own, if it is not the class's; `wishes`
        are those of `Wishes`, one by one, as a pickle holds them."""
        self.name, self.own, self.wishes = name, own, Wishes(*wishes)
        self._captured: dict[bool, Callable[..., Any]] = {}
        self._watch = Watch(name)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.own is None:  # the class is asked at every call: parametrisations and lazy layers change it
            former, args = getattr(type(module), self.name), (module, *args)
        else:
            former = module.__dict__[self.own]
        if torch.compiler.is_compiling() or _is_watched():
            return former(*args, **kwargs)
        mode = module.training and self.wishes.frozen  # which a capture looks at itself where nothing is frozen
        call = self._captured.get(mode)
        if call is None or self._watch.number > _MOST:
            self._watch = Watch(f"{type(module).__name__}.{self.name}")
            call = captured(_call, _swap_and_run(self.wishes), watch=self._watch, modules_stay=self.wishes.frozen)
            self._captured[mode] = call
        try:
            return call(former, args, kwargs, torch.compiler.is_compiling, say_if_off)
        except BaseException:
            self._watch.raised()
            raise


def install(module: nn.Module, name: str, wishes: Wishes) -> None:
    """Put a fused method before the method `name` of `module`, in the module's `__dict__`."""
    attributes = module.__dict__
    there = attributes.get(name)
    own = None
    if _fused_in(there) is None:
        if there is not None:
            own = next(key for i in itertools.count() if (key := f"_film_kernels_former_{name}_{i}") not in attributes)
            attributes[own] = there
    elif there.__self__ is module:  # type: ignore[union-attr]
        if _fused_in(there).wishes == wishes:  # type: ignore[union-attr]
            return
        own = _fused_in(there).own  # type: ignore[union-attr]
    _bind(module, name, Fused(name, own, *wishes))


def _bind(module: nn.Module, key: str, fused: Fused) -> None:
    """`key` is another than `fused.name` where somebody has put the method aside, to put another before it."""
    attributes = module.__dict__
    former = attributes.get(fused.own or "", getattr(type(module), fused.name, fused.__call__))
    attributes[key] = types.MethodType(_function(fused, former), module)
    attributes[_REDUCE] = functools.partial(_reduce, module)  # looked up on the instance, as the other is
    attributes[_REPLICATE] = functools.partial(_replicate, module)


@functools.cache
def _calls_with(free: tuple[str, ...]) -> types.CodeType:
    """The code of a function that calls what stands under the name `_CALL`, with all of `free` as its free variables.

    Its own names are none that those may have, such as a decorator's `self`. It is compiled with them: from Python 3.12
    on, code that is given others than it was compiled with finds none.
    """
    names = ", ".join(free)
    source = f"""
def around({names}):
    def template({_CALL}_self, /, *{_CALL}_args, **{_CALL}_kwargs):
        if False:
            {names}
        return {_CALL}({_CALL}_self, {_CALL}_args, {_CALL}_kwargs)
    return template
"""
    found: dict[str, Any] = {}
    exec(compile(source, __file__, "exec"), found)
    code: types.CodeType = found["around"](*free).__code__
    assert set(code.co_freevars) == set(free)
    return code


def _function(fused: Fused, former: Any) -> Callable[..., Any]:
    """A function that calls `fused`, and that to whoever reads it is `former`: torch.jit looks names up in a function's
    globals and closure, and reads its source, as inspect does, through `__wrapped__`."""
    former = getattr(former, "__func__", former)
    cells = getattr(former, "__closure__", None) or ()
    free = dict(zip(former.__code__.co_freevars if cells else (), cells, strict=True)) | {_CALL: types.CellType(fused)}
    code = _calls_with(tuple(free))
    closure = tuple(free[name] for name in code.co_freevars)
    function = types.FunctionType(code, getattr(former, "__globals__", globals()), fused.name, None, closure)
    functools.update_wrapper(function, former, updated=())
    marks = getattr(former, "__dict__", {}).items()  # torch.jit's; those of torch.compile would lead past this function
    function.__dict__.update((key, mark) for key, mark in marks if not key.startswith("_torchdynamo"))
    function.__dict__.update({"__wrapped__": former, _FUSED: fused})
    return function


def _fused_in(method: Any) -> Fused | None:
    """The Fused behind an attribute of a module, or None."""
    return getattr(method, _FUSED, None) if type(method) is types.MethodType else None


def _reduce(module: nn.Module, protocol: Any) -> Any:
    """`module.__reduce_ex__`, which copy, deepcopy and pickle call: the class's, and the copies get methods that
    are bound to them. (With its `__dict__`, a shallow copy would get those of `module`.)"""
    attributes = module.__dict__
    fused = {
        key: (one.name, one.own, *one.wishes)
        for key, method in attributes.items()
        if (one := _fused_in(method)) is not None
    }
    ours = {key: attributes.pop(key) for key in (*fused, _REDUCE, _REPLICATE) if key in attributes}
    try:
        reduced = type(module).__reduce_ex__(module, protocol)
        if isinstance(reduced, str):
            return reduced
        make, arguments, *others = reduced
        others = [dict(one) if one is attributes else one for one in others]
    finally:
        attributes.update(ours)
    return (_rebuild, (make, arguments, fused), *others)


def _rebuild(
    make: Callable[..., nn.Module], arguments: tuple[Any, ...], fused: dict[str, tuple[Any, ...]]
) -> nn.Module:
    module = make(*arguments)
    for key, options in fused.items():
        _bind(module, key, Fused(*options))
    return module


def _replicate(module: nn.Module) -> nn.Module:
    """DataParallel's replicas live for one call, too short to capture anything: they run their methods as they are."""
    replica = type(module)._replicate_for_data_parallel(module)  # type: ignore[operator]
    attributes = replica.__dict__
    for key, method in list(attributes.items()):
        fused = _fused_in(method)
        if fused is not None and fused.own is not None:
            attributes[key] = attributes[fused.own]
        elif fused is not None:
            attributes[key] = types.MethodType(getattr(type(module), fused.name), replica)
    return replica


def _call(method, args, kwargs, is_compiling, otherwise):
    if not is_compiling():  # Dynamo captures this as true, so that this is asked only where Dynamo did not come
        otherwise()
    return method(*args, **kwargs)


@functools.cache
def _swap_and_run(wishes: Wishes) -> Callable[..., Any]:
    """A function with a name of its own: Dynamo tells graphs of one backend from those of another by it."""

    def swap_and_run(module: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        swap(module, wishes)
        fold_numpy(module)
        fold_upsampling(module)
        prepare(module)
        return as_it_is(module)

    swap_and_run.__name__ = f"swap_and_run_{'_'.join(map(str, wishes))}"
    return swap_and_run


def _is_watched() -> bool:
    """Whether someone traces, transforms or hooks all modules there are, and must see the module's own methods."""
    return (
        symbolic_trace.is_fx_symbolic_tracing()
        or torch.jit.is_tracing()
        or ops.is_transformed()
        or torch._C._len_torch_dispatch_stack() > 0
        or bool(
            _hooks._global_forward_hooks
            or _hooks._global_forward_pre_hooks
            or _hooks._global_backward_hooks
            or _hooks._global_backward_pre_hooks
        )
    )
