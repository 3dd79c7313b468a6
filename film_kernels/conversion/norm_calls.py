"""How `film_kernels.norm_film` computes a norm of a model, or why it does not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from .effects import changed_by, may_share_memory
from .nodes import tensor_of
from .reasons import Reason
from .records import Norm

_OF_POSITIONS = {"layer": "channel", "rms": "rms", "l2": "l2"}
_NARROW = (torch.float16, torch.bfloat16)


def call_of(norm: Norm, channels: int) -> dict[str, Any] | Reason:
    """The arguments of norm_film by which it computes `norm` in front of a FiLM whose channels are the dimension
    `channels`, 1 or -1; or why there are none. `num_groups` is 0 for as many groups as channels."""
    formula = _formula(norm, channels)
    if isinstance(formula, Reason):
        return formula
    given = {"input": norm.source, "num_groups": None, "weight": norm.weight, "bias": norm.bias, "eps": norm.eps}
    return {**given, "channel_dim": 1, **formula}


def _formula(norm: Norm, channels: int) -> dict[str, Any] | Reason:
    source, result = tensor_of(norm.source), tensor_of(norm.node)
    if result is not None and not result.dtype.is_floating_point:
        return Reason(f"{result.dtype} has no fused kernel")
    if norm.kind not in ("group", "instance", "batch", *_OF_POSITIONS):
        return Reason(f"FiLM follows {norm.name} by a formula that norm_film does not have (an unbiased variance, say)")
    if _changes_what_it_is_given(norm):
        return Reason(f"FiLM follows {norm.name}, which changes its own input in place")
    rank = None if source is None else source.dim()
    if rank is not None and not 2 <= rank <= 5:
        return _other_dimensions(norm)
    channels = 1 if rank == 2 else channels
    if norm.dims is None and norm.kind not in _OF_POSITIONS and not norm.inside:
        return _over_positions(norm) if channels == 1 else _other_dimensions(norm)
    if rank is None and norm.dims not in ((1,), (-1,)):
        return Reason(f"the shapes around {norm.name} are not known: give example_inputs")
    return _over_dimensions(norm, channels, rank)


def _over_positions(norm: Norm) -> dict[str, Any] | Reason:
    """A norm over the positions of channels, or of groups of them."""
    if norm.kind == "batch":
        if norm.is_synchronised and norm.training:
            text = "FiLM follows a SyncBatchNorm in training, whose statistics are those of all processes"
            return Reason(text, True, "freeze it")
        if norm.training and norm.running_mean is not None and not isinstance(norm.momentum, (int, float)):
            text = "FiLM follows a BatchNorm in training with momentum=None, which norm_film does not have"
            return Reason(text, True, "freeze it")
        names = ("running_mean", "running_var", "training", "momentum")
        return {"norm": "batch", **{name: getattr(norm, name) for name in names}}
    if norm.running_mean is not None:
        return Reason(f"FiLM follows {norm.name} with running statistics, which norm_film has for BatchNorm alone")
    return {"norm": "group", "num_groups": norm.groups if norm.kind == "group" else 0}


def _over_dimensions(norm: Norm, channels: int, rank: int | None) -> dict[str, Any] | Reason:
    if norm.dims is None:
        return _other_dimensions(norm)
    known = rank or 4  # where it is not known, `dims` are as `channels` has them
    dims, positions = {dim % known for dim in norm.dims}, set(range(2, known))
    if dims == {channels % known} and norm.kind in _OF_POSITIONS:
        return {"norm": _OF_POSITIONS[norm.kind], "channel_dim": channels}
    if norm.kind in ("layer", "instance") and channels == 1 and norm.weight is None and norm.bias is None:
        for groups, over in ((0, positions), (1, {1, *positions})):
            if dims == over:
                return {"norm": "group", "num_groups": groups}
    return _other_dimensions(norm)


def _other_dimensions(norm: Norm) -> Reason:
    return Reason(f"FiLM follows {norm.name} over dimensions, or with weights, that norm_film does not have")


def _changes_what_it_is_given(norm: Norm) -> bool:
    """Whether one that is written out changes something in place that it has not made."""
    return any(
        changed is None or any(may_share_memory(one, other) for one in changed for other in norm.reads)
        for changed in map(changed_by, norm.inside)
    )


def is_widening(before: Tensor | None, after: Tensor | None) -> bool:
    """Whether `after` is `before` in float32 in place of 16 bits."""
    known = before is not None and after is not None and before.device == after.device
    return known and before.dtype in _NARROW and after.dtype == torch.float32  # type: ignore[union-attr]


def before_widening(node: fx.Node) -> fx.Node | None:
    """What `node` converts from 16 bits to float32, and does nothing else to."""
    if node.op != "call_method" or node.target not in ("float", "to", "type"):
        return None
    source = node.args[0]
    return source if isinstance(source, fx.Node) and is_widening(tensor_of(source), tensor_of(node)) else None
