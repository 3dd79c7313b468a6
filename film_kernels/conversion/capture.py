"""Graphs of a user's model, to be looked at: from a run on example inputs, or from a symbolic trace without them."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from .crossings import Crossings
from .dynamo import Watch, captured, why_off
from .nodes import note_buffers
from .site import Site, site_of
from .swap import Wishes, checkpointed, found_in

Inputs = Tensor | Sequence[Any] | Mapping[str, Any] | None


def find_film(
    model: nn.Module, example_inputs: Inputs = None, *, norms: bool = False, convolutions: bool = False
) -> list[Site]:
    """Every place in `model` where a convolution's output, or a norm's, meets a scale and shift per sample and channel.

    That is a scale or shift, with one value a channel, that depends on what the model is called with; or a scale by
    parameters, whose gamma may be a task's own, unless a norm stands before it: then it is the norm's. A shift by
    parameters alone is a bias. Where the values vary over positions, a site is listed only where a scale and a shift
    come together, and not for the convolution that makes them. Where neither a convolution nor a norm stands in front,
    a site is listed only where a scale and a shift of each sample are made of the same conditioning.

    Args:
        model: any module. Sites depend on its mode: a dropout in training cannot be taken into a kernel.
        example_inputs: a tensor, the tuple of positional arguments, or a dict of keyword arguments. The model is run
            on them once, and its buffers, attributes and random numbers are restored afterwards; so control flow,
            graph breaks and shapes are seen as they are. Without them the model is traced symbolically, which has
            narrower limits, and knows no shapes. Where Dynamo is turned off (TORCHDYNAMO_DISABLE=1,
            `torch.compiler.set_stance("force_eager")`) it is traced so too, and shapes come from the inputs.
        norms: norms with an activation behind them and no FiLM as well, which `film_kernels.fuse` takes too.
        convolutions: convolutions without FiLM as well, which `film_kernels.fuse(model, convolutions=True)` takes.

    Returns:
        The sites in the order of execution, fusable or not; a module that is called twice has two.

    Raises:
        ValueError: a model that would have to be traced symbolically and cannot be; the message says why.
        TypeError: `model` or `example_inputs` of another type.
    """
    return sites_of(model, example_inputs, Wishes(norms, convolutions=convolutions))


def sites_of(model: nn.Module, example_inputs: Inputs, wishes: Wishes) -> list[Site]:
    """What `find_film` returns, for those `wishes`."""
    check_model(model)
    training = any(module.training for module in model.modules())
    if example_inputs is None:
        subject = "example_inputs must be given for this model: without them it"
        return _sites_in(_symbolic(model, subject), {}, training, wishes)
    args, kwargs = arguments_of(example_inputs)
    off = why_off()
    if off is not None:
        graph = _symbolic(model, f"{off} turns off Dynamo, through which example_inputs are run; and this model")
        return _sites_in(_with_shapes(graph, model, args, kwargs), {}, training, wishes)
    names = {id(module): name for name, module in model.named_modules()}
    return [site for graph in _run(model, args, kwargs) for site in _sites_in(graph, names, training, wishes)]


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


def _sites_in(module: fx.GraphModule, names: Mapping[int, str], training: bool, wishes: Wishes) -> list[Site]:
    sites = [site_of(match, names, training) for match in found_in(module.graph, wishes, training)]
    return sites + [site for body in checkpointed(module) for site in _sites_in(body, names, training, wishes)]


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[fx.GraphModule]:
    """The graphs that Dynamo cuts the model into, in the order in which they are run."""
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

    with _as_it_was(model), torch.enable_grad():  # with gradients, no_grad in the model shows
        captured(_call, record, watch=Watch(type(model).__name__), dynamic=False)(model, args, kwargs)
    return graphs


def _call(model, args, kwargs):
    return model(*args, **kwargs)


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


def _symbolic(model: nn.Module, subject: str) -> fx.GraphModule:
    """`model`, traced. `subject` begins the sentence of the error."""
    try:
        tracer = _Tracer()
        tracer.record_stack_traces = True
        return fx.GraphModule(model, tracer.trace(model))
    except Exception as error:
        raise ValueError(f"{subject} cannot be traced ({error})") from error


def _with_shapes(
    graph: fx.GraphModule, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> fx.GraphModule:
    """`graph`, a trace of `model`, with the shape and dtype of each result under the name that Dynamo has for them."""
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    with _as_it_was(model), torch.no_grad():
        _Shapes(graph).run(*bound.args, *bound.kwargs.values())
    return graph


class _Shapes(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta["example_value"] = result.to("meta") if isinstance(result, Tensor) else result
        return result
