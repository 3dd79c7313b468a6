"""Norms that are PyTorch's own layers and functions, as records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from .nodes import arguments_of, is_one_of, module_of, target_of, tensor_of
from .records import Norm


@dataclass(frozen=True)
class _Kind:
    """A kind of norm: what it is called in listings, and the arguments of its functions in their order."""

    kind: str
    name: str
    arguments: tuple[str, ...]


_GROUP = _Kind("group", "group_norm", ("input", "groups", "weight", "bias", "eps"))
_LAYER = _Kind("layer", "layer_norm", ("input", "normalized_shape", "weight", "bias", "eps"))
_RMS = _Kind("rms", "rms_norm", ("input", "normalized_shape", "weight", "eps"))
_L2 = _Kind("l2", "normalize", ("input", "p", "dim", "eps"))
_LOCAL = _Kind("local_response", "local_response_norm", ("input", "size"))
_INSTANCE = _Kind(
    "instance",
    "instance_norm",
    ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
)
_BATCH = _Kind(
    "batch", "batch_norm", ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
)
NORMS: dict[Any, _Kind] = {
    **dict.fromkeys((F.group_norm, torch.group_norm, nn.GroupNorm), _GROUP),
    **dict.fromkeys((F.layer_norm, torch.layer_norm, nn.LayerNorm), _LAYER),
    **dict.fromkeys((F.instance_norm, torch.instance_norm), _INSTANCE),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _INSTANCE),
    **dict.fromkeys((F.rms_norm, torch.rms_norm, nn.RMSNorm), _RMS),
    F.normalize: _L2,
    **dict.fromkeys((F.local_response_norm, nn.LocalResponseNorm), _LOCAL),
}
_BATCH_NORMS = (F.batch_norm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# What functions and modules call the same: modules' attributes, and F.group_norm's and torch.group_norm's keywords.
_OTHER_NAMES = {"num_groups": "groups", "use_input_stats": "training"}
_DEFAULT_EPS = {"group": 1e-5, "layer": 1e-5, "instance": 1e-5, "batch": 1e-5, "l2": 1e-12}


def is_norm(node: fx.Node) -> bool:
    """Whether `node` calls one of PyTorch's norms, BatchNorms apart."""
    return is_one_of(target_of(node), NORMS)


def norm_of(node: fx.Node, passing: fx.Node) -> Norm | None:
    """`node` as a norm of `passing`, or None."""
    target = target_of(node)
    if is_one_of(target, NORMS):
        return _norm(node, passing, NORMS[target])
    if is_one_of(target, _BATCH_NORMS):
        return _batch_norm(node, passing)
    return None


def _norm(node: fx.Node, passing: fx.Node, kind: _Kind) -> Norm:
    given = _arguments(node, kind)
    channels, dims = _dimensions(kind.kind, given, tensor_of(passing))
    is_euclidean = kind is not _L2 or given.get("p", 2) == 2
    return Norm(
        node, passing, kind.kind if is_euclidean else "statistics", kind.name, _spelling(node), channels, dims,
        given.get("groups"), weight=given.get("weight"), bias=given.get("bias"),
        running_mean=given.get("running_mean"), running_var=given.get("running_var"),
        training=given.get("training", True) or given.get("running_mean") is None,
        eps=given.get("eps", _DEFAULT_EPS.get(kind.kind)),
    )  # fmt: skip


def _batch_norm(node: fx.Node, passing: fx.Node) -> Norm | None:
    module, given = module_of(node), _arguments(node, _BATCH)
    if isinstance(module, nn.modules.batchnorm._NormBase):
        training = module.training or module.running_mean is None
    else:
        training = given.get("training", False)
        if passing is not given["input"]:
            return None
    return Norm(
        node, passing, "batch", "batch_norm", _spelling(node),
        weight=given.get("weight"), bias=given.get("bias"), running_mean=given.get("running_mean"),
        running_var=given.get("running_var"), training=training, momentum=given.get("momentum", 0.1),
        is_synchronised=_is_synchronised(node), eps=given.get("eps", 1e-5),
    )  # fmt: skip


def _is_synchronised(node: fx.Node) -> bool:
    """Whether a SyncBatchNorm calls it. (In a graph of Dynamo's it is batch_norm as long as there is one process.)"""
    within = list(node.meta.get("nn_module_stack", {}).values())
    kinds = [target_of(node), *(kind for _, kind in within[-1:])]
    return any(kind is nn.SyncBatchNorm for kind in kinds)


def _spelling(node: fx.Node) -> str:
    return "module" if node.op == "call_module" else "function"


def _arguments(node: fx.Node, kind: _Kind) -> dict[str, Any]:
    """What the norm is given, under the names of `Norm`: a module's attributes, or a call's arguments."""
    module = module_of(node)
    if module is None:
        given = arguments_of(node, kind.arguments)
        return {_OTHER_NAMES.get(name, name): value for name, value in given.items()}
    names = {_OTHER_NAMES.get(name, name): name for name in (*kind.arguments, *_OTHER_NAMES)}
    return {ours: getattr(module, theirs) for ours, theirs in names.items() if hasattr(module, theirs)}


def _dimensions(kind: str, given: dict[str, Any], input: torch.Tensor | None) -> tuple[int, tuple[int, ...] | None]:
    """Where the channels are, and what is normalised over."""
    if kind in ("layer", "rms"):  # the last dimensions
        shape = given.get("normalized_shape")
        number = len(shape) if isinstance(shape, (tuple, list)) else 1
        is_of_channels = number == 1 or (input is not None and number < input.dim() - 1)
        return (-1 if is_of_channels else 1), tuple(range(-number, 0))
    if kind == "l2":
        dim = given.get("dim", 1)
        dims = tuple(dim) if isinstance(dim, (tuple, list)) else (dim,) if isinstance(dim, int) else None
        return (-1 if dims == (-1,) else 1), dims
    return 1, None
