"""The backend of torch.compile: FiLM sites are swapped in Dynamo's graph, and another backend compiles the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils.checkpoint import checkpoint

from ..checks import check_choice
from ..problems.conv_film import KEEPS
from .swap import Wishes, swap


def film_kernels(
    module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """`torch.compile(model, backend="film_kernels")`: fusable sites become calls of `film_kernels.conv_film` and
    `norm_film`, then Inductor compiles the graph. On CPUs those are left to it that it serves as fast.

    Args:
        module: Dynamo's graph; it is changed.
        example_inputs: Dynamo's.
        mode: Inductor's, as torch.compile takes it.
        options: `{"backend": "eager"}`, or another of `torch._dynamo.list_backends()`, in place of Inductor;
            `{"norms": False}`, `{"convolutions": True}` and `{"keep": "least"}` as for `film_kernels.fuse`; what else
            there is, is Inductor's own (`torch._inductor.list_options()`).

    Raises:
        ValueError: `mode`, or `options` that are Inductor's, for another backend; an unknown `keep`.
    """
    patches = dict(options or {})
    name, norms = patches.pop("backend", "inductor"), patches.pop("norms", True)
    keep = check_choice("keep", patches.pop("keep", "fast"), KEEPS)
    wishes = Wishes(norms, keep, patches.pop("convolutions", False), before_inductor=name == "inductor")
    if name != "inductor" and (mode or patches):
        raise ValueError(f"mode={mode!r} and options {sorted(patches)} are Inductor's; options['backend'] is {name!r}")
    swap(module, wishes)
    if name == "inductor":
        from torch import _inductor  # takes a second, which only who compiles should spend

        if mode:
            patches = {**_inductor.list_mode_options(mode), **patches}
        return _inductor.compile(module, list(example_inputs), options=patches or None)  # type: ignore[return-value]
    if name == "eager":
        return as_it_is(module)
    return torch._dynamo.lookup_backend(name)(module, list(example_inputs))


def as_it_is(module: fx.GraphModule) -> Callable[..., Any]:
    """A graph of Dynamo's, run as the user's own code would run: checkpoints with their random state kept."""
    changed = False
    for node in module.graph.nodes:
        if getattr(node.target, "__name__", "") == "tag_activation_checkpoint":
            body = getattr(module, str(node.args[0].target), None)
            if isinstance(body, fx.GraphModule) and "_checkpoint_context_fn" not in body.meta:
                node.target, changed = _checkpoint, True
    if changed:
        module.recompile()
    return module.forward


def _checkpoint(body: fx.GraphModule, *args: Any, **options: Any) -> Any:
    return checkpoint(body.forward, *args, **{**options, "use_reentrant": False})
