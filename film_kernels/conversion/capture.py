"""Graphs of a user's model, to be looked at: from a run on example inputs, or from a symbolic trace without them."""

from __future__ import annotations

import builtins
import contextlib
import itertools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from .crossings import Crossings
from .matching import matches
from .nodes import note_buffers
from .site import Site, site_of
from .swap import checkpointed

_numbers = itertools.count()
Inputs = Tensor | Sequence[Any] | Mapping[str, Any] | None


def find_film(model: nn.Module, example_inputs: Inputs = None) -> list[Site]:
    """Every place in `model` where a convolution's output meets a scale and shift per sample and channel.

    That is a scale or shift, with one value a channel, that depends on what the model is called with; or a scale by
    parameters, whose gamma may be a task's own, unless a norm stands before it: then it is the norm's. A shift by
    parameters alone is a bias. Where the values vary over positions, a site is listed only where a scale and a shift
    come together, and not for the convolution that makes them.

    Args:
        model: any module. Sites depend on its mode: a BatchNorm in training cannot be taken into a kernel.
        example_inputs: a tensor, the tuple of positional arguments, or a dict of keyword arguments. The model is run
            on them once, and its buffers, attributes and random numbers are restored afterwards; so control flow,
            graph breaks and shapes are seen as they are. Without them the model is traced symbolically, which has
            narrower limits, and knows no shapes.

    Returns:
        The sites in the order of execution, fusable or not; a module that is called twice has two.

    Raises:
        ValueError: without example_inputs, a model that cannot be traced symbolically; the message says why.
        TypeError: `model` or `example_inputs` of another type.
    """
    check_model(model)
    training = any(module.training for module in model.modules())
    if example_inputs is None:
        return _sites_in(_symbolic(model), {}, training)
    args, kwargs = arguments_of(example_inputs)
    names = {id(module): name for name, module in model.named_modules()}
    return [site for graph in _run(model, args, kwargs) for site in _sites_in(graph, names, training)]


def check_model(model: Any) -> None:
    """Raise TypeError unless `model` is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def arguments_of(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the model."""
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, Sequence) and not isinstance(example_inputs, str):
        return tuple(example_inputs), {}
    raise TypeError(
        f"example_inputs must be a tensor, a tuple of arguments or a dict of them, got {type(example_inputs).__name__}"
    )


def _sites_in(module: fx.GraphModule, names: Mapping[int, str], training: bool) -> list[Site]:
    sites = [site_of(match, names, training) for match in matches(module.graph)]
    return sites + [site for body in checkpointed(module) for site in _sites_in(body, names, training)]


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[fx.GraphModule]:
    """The graphs that Dynamo cuts the model into, in the order in which they are run. A number that is read from a
    tensor, `x.item()`, cuts none where Dynamo can go on without its value."""
    with contextlib.suppress(Exception):  # the value was needed after all, or the error is the model's own
        return _graphs(model, args, kwargs, capture_scalar_outputs=True, capture_dynamic_output_shape_ops=True)
    return _graphs(model, args, kwargs)


def _graphs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], **options: Any) -> list[fx.GraphModule]:
    graphs: list[fx.GraphModule] = []
    crossings = Crossings()

    def record(module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        note_buffers(module.graph)

        def run(*values: Any) -> Any:
            graphs.append(module)
            crossings.enter(module.graph, values)
            results = module.forward(*values)
            crossings.leave(module.graph, results)
            return results

        return run

    compiled = torch.compile(function_of_its_own(_call), backend=record, dynamic=False)
    config = torch._dynamo.config.patch(recompile_limit=1 << 20, accumulated_recompile_limit=1 << 20, **options)
    with _as_it_was(model), torch.enable_grad(), config:  # with gradients, no_grad in the model shows
        compiled(model, args, kwargs)
    return graphs


def _call(model, args, kwargs):
    return model(*args, **kwargs)


def function_of_its_own(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which uses no globals, with a code object and name of its own: Dynamo counts recompilations by the
    one, and remembers by the other which sizes have changed; what it saw of one model is not another's."""
    code = function.__code__  # type: ignore[attr-defined]
    return types.FunctionType(code.replace(co_name=f"{code.co_name}_{next(_numbers)}"), {"__builtins__": builtins})


@contextlib.contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Restores what a forward pass may change: buffers, random numbers, and attributes that it binds anew, as a hidden
    state is."""
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    attributes = [(module, type(module), dict(module.__dict__)) for module in model.modules()]
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers()) if tensor.device.type == "cuda"}
    with torch.random.fork_rng(sorted(device.index for device in devices)):
        try:
            yield
        finally:
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    if name in buffers:
                        buffer.copy_(buffers[name])
            for module, kind, before in attributes:
                if type(module) is kind:  # a lazy layer has become another
                    module.__dict__.update({k: v for k, v in before.items() if not k.startswith("_")})


class _Tracer(fx.Tracer):
    record_stack_traces = True


def _symbolic(model: nn.Module) -> fx.GraphModule:
    try:
        tracer = _Tracer()
        tracer.record_stack_traces = True
        return fx.GraphModule(model, tracer.trace(model))
    except Exception as error:
        raise ValueError(
            f"example_inputs must be given for this model: without them it cannot be traced ({error})"
        ) from error
