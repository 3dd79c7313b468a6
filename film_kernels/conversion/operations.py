"""What a node of a graph does to the tensor that passes through it, whichever way it was written.

Both kinds of graph are read: Dynamo's, where layers are calls of functions, and torch.fx's symbolic trace, where
they are calls of modules.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..activations import ACTIVATIONS
from .effects import changed_by
from .factors import CONVERSIONS, is_conversion_to_itself
from .nodes import module_of, same, same_shape, storage_of, target_of, tensor_of, word_of
from .reasons import Reason


@dataclass(frozen=True)
class Operation:
    """One step of a chain: `kind` is "convolution", "batch_norm", "activation", "scale", "shift", "affine" (both),
    "nothing" or "refused"; `name` is what a listing calls it, "" where it is not listed; `reason` says why a kernel
    cannot take it in."""

    kind: str
    name: str
    node: fx.Node
    factors: tuple[Any, ...] = ()  # (scale,), (shift,) or (scale, shift)
    inverse: bool = False  # a division or subtraction by the factor
    arguments: dict[str, Any] = field(default_factory=dict)
    reason: Reason | None = None


_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_DROPOUT = ("input", "p", "training", "inplace")

CONVOLUTIONS: dict[Any, str] = {
    torch.conv1d: "conv1d",
    torch.conv2d: "conv2d",
    torch.conv3d: "conv3d",
    torch.conv_transpose1d: "conv_transpose1d",
    torch.conv_transpose2d: "conv_transpose2d",
    torch.conv_transpose3d: "conv_transpose3d",
    nn.Conv1d: "conv1d",
    nn.Conv2d: "conv2d",
    nn.Conv3d: "conv3d",
    nn.ConvTranspose1d: "conv_transpose1d",
    nn.ConvTranspose2d: "conv_transpose2d",
    nn.ConvTranspose3d: "conv_transpose3d",
}
NORMS: dict[Any, str] = {
    F.group_norm: "group_norm",
    torch.group_norm: "group_norm",
    nn.GroupNorm: "group_norm",
    F.layer_norm: "layer_norm",
    torch.layer_norm: "layer_norm",
    nn.LayerNorm: "layer_norm",
    F.instance_norm: "instance_norm",
    torch.instance_norm: "instance_norm",
    nn.InstanceNorm1d: "instance_norm",
    nn.InstanceNorm2d: "instance_norm",
    nn.InstanceNorm3d: "instance_norm",
    F.rms_norm: "rms_norm",
    torch.rms_norm: "rms_norm",
    nn.RMSNorm: "rms_norm",
    F.normalize: "normalize",
    F.local_response_norm: "local_response_norm",
    nn.LocalResponseNorm: "local_response_norm",
}
_BATCH_NORMS = (F.batch_norm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_DROPOUTS = (
    F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
_ACTIVATIONS: dict[Any, str] = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, "relu", "relu_", nn.ReLU), "relu"),
    **dict.fromkeys((F.leaky_relu, F.leaky_relu_, nn.LeakyReLU), "leaky_relu"),
    **dict.fromkeys((F.silu, nn.SiLU), "silu"),
    **dict.fromkeys((F.gelu, nn.GELU), "gelu"),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, torch.sigmoid_, "sigmoid", "sigmoid_", nn.Sigmoid), "sigmoid"),
    **dict.fromkeys((F.tanh, torch.tanh, torch.tanh_, "tanh", "tanh_", nn.Tanh), "tanh"),
    **dict.fromkeys((F.mish, nn.Mish), "mish"),
}
_OTHER_ACTIVATIONS: dict[Any, str] = {
    **dict.fromkeys((torch.prelu, "prelu", nn.PReLU), "prelu"),
    **dict.fromkeys((F.elu, F.elu_, nn.ELU), "elu"),
    **dict.fromkeys((F.selu, torch.selu, nn.SELU), "selu"),
    **dict.fromkeys((F.celu, torch.celu, nn.CELU), "celu"),
    **dict.fromkeys((F.relu6, nn.ReLU6), "relu6"),
    **dict.fromkeys((F.hardtanh, nn.Hardtanh), "hardtanh"),
    **dict.fromkeys((F.hardswish, nn.Hardswish), "hardswish"),
    **dict.fromkeys((F.hardsigmoid, nn.Hardsigmoid), "hardsigmoid"),
    **dict.fromkeys((F.softplus, nn.Softplus), "softplus"),
    **dict.fromkeys((F.rrelu, nn.RReLU), "rrelu"),
}
_VIEWS = {"view", "reshape", "view_as", "getitem", "expand", "expand_as", "squeeze", "flatten", "unflatten"}
_MULTIPLY = {operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply", "multiply_"}
_ADD = {operator.add, operator.iadd, torch.add, "add", "add_"}
_DIVIDE = {operator.truediv, operator.itruediv, torch.div, torch.divide, torch.true_divide, "div", "div_", "divide"}
_SUBTRACT = {operator.sub, operator.isub, torch.sub, torch.subtract, "sub", "sub_", "subtract"}
_MULTIPLY_ADD = {torch.addcmul, "addcmul", "addcmul_"}


def _bound(node: fx.Node, names: tuple[str, ...]) -> dict[str, Any]:
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def is_one_of(target: Any, choices: Any) -> bool:
    try:
        return target in choices
    except TypeError:  # no hash
        return False


def convolution_of(node: fx.Node) -> Operation | None:
    """`node` as a convolution, or None; `arguments` are those of `torch.nn.functional.conv2d`, for a function."""
    target = target_of(node)
    if not is_one_of(target, CONVOLUTIONS):
        return None
    arguments = _bound(node, _CONVOLUTION) if node.op == "call_function" else {"input": node.args[0]}
    return Operation("convolution", CONVOLUTIONS[target], node, arguments=arguments)


def operation_of(node: fx.Node, passing: fx.Node) -> Operation | None:
    """What `node` does to `passing`, one of its arguments; None where it is nothing that a chain knows, or changes
    another tensor than `passing`: `state.add_(conv(x))`."""
    target = target_of(node)
    changed = changed_by(node) if node.op != "call_module" else []
    for read in (_normalisation, _arithmetic, _activation, _dropout, _conversion):
        if read is not _normalisation and changed not in ([], [passing]):
            return None
        operation = read(node, target, passing)
        if operation is not None:
            return operation
    return None


def _arithmetic(node: fx.Node, target: Any, passing: fx.Node) -> Operation | None:
    if is_one_of(target, _MULTIPLY_ADD):
        shift, first, second, value = (_bound(node, ("input", "tensor1", "tensor2")).get(n) for n in (
            "input", "tensor1", "tensor2", "value"))  # fmt: skip
        scale = second if first is passing else first
        if passing not in (first, second) or passing in (shift, scale) or value not in (None, 1):
            return None
        return Operation("affine", "film", node, (scale, shift))
    names: tuple[tuple[Any, str, bool], ...] = (
        (_MULTIPLY, "scale", False), (_ADD, "shift", False), (_DIVIDE, "scale", True), (_SUBTRACT, "shift", True),
    )  # fmt: skip
    for targets, kind, inverse in names:
        if not is_one_of(target, targets):
            continue
        given = _bound(node, ("input", "other"))
        alpha = given.pop("alpha", 1)
        if given.keys() != {"input", "other"} or len(node.args) > 2 or alpha != 1:  # out, rounding_mode
            return None
        left, right = given["input"], given["other"]
        other = right if left is passing else left
        if other is passing or (inverse and left is not passing):
            return None
        return Operation(kind, kind, node, (other,), inverse)
    return None


def _activation(node: fx.Node, target: Any, passing: fx.Node) -> Operation | None:
    if is_one_of(target, _OTHER_ACTIVATIONS):
        name = _OTHER_ACTIVATIONS[target]
        served = ", ".join(ACTIVATIONS)
        reason = Reason(f"{name} is not an activation of the kernels ({served})")
        return Operation("refused", name, node, reason=reason)
    if not is_one_of(target, _ACTIVATIONS):
        return None
    name = _ACTIVATIONS[target]
    module = module_of(node)
    slope = 0.01
    if name == "leaky_relu":
        slope = (
            module.negative_slope if module else _bound(node, ("input", "negative_slope")).get("negative_slope", slope)
        )
    if name == "gelu":
        approximate = module.approximate if module else node.kwargs.get("approximate", "none")
        name = "gelu_tanh" if approximate == "tanh" else "gelu"
    return Operation("activation", name, node, arguments={"negative_slope": slope})


def _normalisation(node: fx.Node, target: Any, passing: fx.Node) -> Operation | None:
    if is_one_of(target, NORMS):
        name = NORMS[target]
        return norm(name, node)
    if not is_one_of(target, _BATCH_NORMS):
        return None
    module = module_of(node)
    if isinstance(module, nn.modules.batchnorm._NormBase):
        training, always = module.training or not module.track_running_stats, not module.track_running_stats
        arguments: dict[str, Any] = {}
    else:
        arguments = _bound(node, _BATCH_NORM)
        training, always = arguments.get("training", False), arguments.get("running_mean") is None
        if passing is not arguments["input"]:
            return None
    if always:
        text = "FiLM follows a BatchNorm without running statistics: in every mode it needs those of the batch first"
        return Operation("refused", "batch_norm", node, reason=Reason(text))
    if training:
        text = "a BatchNorm in training stands between convolution and FiLM: its statistics need the whole batch first"
        return Operation("refused", "batch_norm", node, reason=Reason(text, True, "freeze it"))
    return Operation("batch_norm", "batch_norm", node, arguments=arguments)


def norm(name: str, node: fx.Node) -> Operation:
    """A norm that ends at `node`, which no kernel takes in between a convolution and FiLM."""
    text = f"FiLM follows {name}, whose statistics need the whole result of the convolution first"
    return Operation("refused", name, node, reason=Reason(text))


def _dropout(node: fx.Node, target: Any, passing: fx.Node) -> Operation | None:
    if not is_one_of(target, _DROPOUTS):
        return None
    module, always = module_of(node), False
    if module is not None:
        active = module.training and module.p > 0  # type: ignore[operator]
    else:
        arguments = _bound(node, _DROPOUT)
        default = target is not F.alpha_dropout and target is not F.feature_alpha_dropout
        training = arguments.get("training", arguments.get("train"))
        always = training is None  # F.dropout(x) knows no mode
        active = (default if always else training is not False) and arguments.get("p", 0.5) != 0
    if not active:
        return Operation("nothing", "dropout", node)
    text = "an active dropout stands between convolution and FiLM"
    if always:
        text += ", in every mode: F.dropout is not told of training"
    return Operation("refused", "dropout", node, reason=Reason(text, not always, "move it behind FiLM"))


def _conversion(node: fx.Node, target: Any, passing: fx.Node) -> Operation | None:
    """What leaves the values as they are, in the same dtype or another."""
    if target is nn.Identity or target in ("clone", torch.clone):
        return Operation("nothing", "", node)
    if is_conversion_to_itself(node) or _is_all_of(node, passing):
        return Operation("nothing", "", node)
    if node.op != "call_method" or target not in CONVERSIONS or passing is not node.args[0]:
        return None
    before, after = tensor_of(passing), tensor_of(node)
    if before is None or after is None or not same_shape(before, after):
        return None
    kind = f"to {after.dtype}" if after.dtype != before.dtype else "to another device or memory format"
    reason = Reason(f"a conversion {kind} stands between convolution and FiLM")
    return Operation("refused", str(target), node, reason=reason)


def _is_all_of(node: fx.Node, passing: fx.Node) -> bool:
    """Whether `node` is a view of the whole of `passing` as it is: `x[:]`, `x.view(x.shape)`."""
    before, after = tensor_of(passing), tensor_of(node)
    if word_of(node) not in _VIEWS or before is None or after is None or not same_shape(before, after):
        return False
    same_strides = all(same(a, b) for a, b in zip(before.stride(), after.stride(), strict=True))
    return same_strides and storage_of(before) == storage_of(after) is not None
