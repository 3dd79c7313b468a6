"""What a node of a graph does to the tensor that passes through it, whichever way it was written.

Both kinds of graph are read: Dynamo's, where layers are calls of functions, and torch.fx's symbolic trace, where
they are calls of modules.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..activations import ACTIVATIONS
from .effects import changed_by
from .factors import CONVERSIONS, is_conversion_to_itself
from .nodes import arguments_of, is_one_of, module_of, same, same_shape, storage_of, target_of, tensor_of, word_of
from .norms import norm_of
from .reasons import Reason
from .records import Activation, Affine, Convolution, Operation, Passing

_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_DROPOUT = ("input", "p", "training", "inplace")

CONVOLUTIONS: dict[Any, tuple[int, bool]] = {  # spatial rank, whether transposed
    torch.conv1d: (1, False),
    torch.conv2d: (2, False),
    torch.conv3d: (3, False),
    torch.conv_transpose1d: (1, True),
    torch.conv_transpose2d: (2, True),
    torch.conv_transpose3d: (3, True),
    nn.Conv1d: (1, False),
    nn.Conv2d: (2, False),
    nn.Conv3d: (3, False),
    nn.ConvTranspose1d: (1, True),
    nn.ConvTranspose2d: (2, True),
    nn.ConvTranspose3d: (3, True),
}
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
    **dict.fromkeys((F.elu, F.elu_, nn.ELU), "elu"),
    **dict.fromkeys((F.celu, F.celu_, torch.celu, torch.celu_, nn.CELU), "celu"),
}
_OTHER_ACTIVATIONS: dict[Any, str] = {
    **dict.fromkeys((torch.prelu, "prelu", nn.PReLU), "prelu"),
    **dict.fromkeys((F.selu, torch.selu, nn.SELU), "selu"),
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
_ARITHMETIC = _MULTIPLY | _ADD | _DIVIDE | _SUBTRACT | _MULTIPLY_ADD


def convolution_of(node: fx.Node) -> Convolution | None:
    """`node` as a convolution, or None."""
    target = target_of(node)
    if not is_one_of(target, CONVOLUTIONS):
        return None
    return Convolution(node, *CONVOLUTIONS[target], arguments_of(node, _CONVOLUTION))


def is_arithmetic(node: fx.Node) -> bool:
    """Whether `node` is a sum, a product or the like, of which either operand may be what passes."""
    return is_one_of(target_of(node), _ARITHMETIC)


def operation_of(node: fx.Node, passing: fx.Node) -> Operation | None:
    """What `node` does to `passing`, one of its arguments; None where it is nothing that a chain knows, or changes
    another tensor than `passing`: `state.add_(conv(x))`."""
    norm = norm_of(node, passing)
    if norm is not None:
        return norm
    if node.op != "call_module" and changed_by(node) not in ([], [passing]):
        return None
    return (
        _arithmetic(node, passing)
        or _activation(node, passing)
        or _dropout(node, passing)
        or _conversion(node, passing)
    )


def _arithmetic(node: fx.Node, passing: fx.Node) -> Affine | None:
    target = target_of(node)
    if is_one_of(target, _MULTIPLY_ADD):
        given = arguments_of(node, ("input", "tensor1", "tensor2"))
        shift, first, second, value = (given.get(name) for name in ("input", "tensor1", "tensor2", "value"))
        scale = second if first is passing else first
        if passing not in (first, second) or passing in (shift, scale) or value not in (None, 1):
            return None
        return Affine(node, scale, shift)
    names: tuple[tuple[Any, str, bool], ...] = (
        (_MULTIPLY, "scale", False), (_ADD, "shift", False), (_DIVIDE, "scale", True), (_SUBTRACT, "shift", True),
    )  # fmt: skip
    for targets, kind, inverse in names:
        if not is_one_of(target, targets):
            continue
        given = arguments_of(node, ("input", "other"))
        alpha = given.pop("alpha", 1)
        if given.keys() != {"input", "other"} or len(node.args) > 2 or alpha != 1:  # out, rounding_mode
            return None
        left, right = given["input"], given["other"]
        other = right if left is passing else left
        if other is passing or (inverse and left is not passing):
            return None
        return Affine(node, **{kind: other}, inverse=inverse)
    return None


def _activation(node: fx.Node, passing: fx.Node) -> Activation | None:
    target = target_of(node)
    if is_one_of(target, _OTHER_ACTIVATIONS):
        name = _OTHER_ACTIVATIONS[target]
        served = ", ".join(ACTIVATIONS)
        return Activation(node, name, reason=Reason(f"{name} is not an activation of the kernels ({served})"))
    if not is_one_of(target, _ACTIVATIONS):
        return None
    name = _ACTIVATIONS[target]
    module = module_of(node)
    if name == "gelu":
        approximate = module.approximate if module else node.kwargs.get("approximate", "none")
        name = "gelu_tanh" if approximate == "tanh" else "gelu"
    if name in ("elu", "celu"):  # with alpha = 1 they are the same
        alpha = module.alpha if module else arguments_of(node, ("input", "alpha", "inplace")).get("alpha", 1.0)
        reason = (
            None if alpha == 1 else Reason(f"{name} with alpha = {alpha} is not an activation of the kernels: 1 is")
        )
        return Activation(node, "elu", reason=reason)
    if name != "leaky_relu":
        return Activation(node, name)
    given = arguments_of(node, ("input", "negative_slope"))
    return Activation(node, name, module.negative_slope if module else given.get("negative_slope", 0.01))


def _dropout(node: fx.Node, passing: fx.Node) -> Passing | None:
    target = target_of(node)
    if not is_one_of(target, _DROPOUTS):
        return None
    module, always = module_of(node), False
    if module is not None:
        active = module.training and module.p > 0  # type: ignore[operator]
    else:
        arguments = arguments_of(node, _DROPOUT)
        default = target is not F.alpha_dropout and target is not F.feature_alpha_dropout
        training = arguments.get("training", arguments.get("train"))
        always = training is None  # F.dropout(x) knows no mode
        active = (default if always else training is not False) and arguments.get("p", 0.5) != 0
    if not active:
        return Passing(node, "dropout")
    text = "an active dropout stands in front of FiLM"
    if always:
        text += ", in every mode: F.dropout is not told of training"
    return Passing(node, "dropout", Reason(text, not always, "move it behind FiLM"))


def _conversion(node: fx.Node, passing: fx.Node) -> Passing | None:
    """What leaves the values as they are, in the same dtype or another."""
    target = target_of(node)
    if target is nn.Identity or target in ("clone", torch.clone):
        return Passing(node)
    if is_conversion_to_itself(node) or _is_all_of(node, passing):
        return Passing(node)
    if node.op != "call_method" or target not in CONVERSIONS or passing is not node.args[0]:
        return None
    before, after = tensor_of(passing), tensor_of(node)
    if before is None or after is None or not same_shape(before, after):
        return None
    kind = f"to {after.dtype}" if after.dtype != before.dtype else "to another device or memory format"
    reason = Reason(f"a conversion {kind} stands in front of FiLM")
    return Passing(node, str(target), reason)


def _is_all_of(node: fx.Node, passing: fx.Node) -> bool:
    """Whether `node` is a view of the whole of `passing` as it is: `x[:]`, `x.view(x.shape)`."""
    before, after = tensor_of(passing), tensor_of(node)
    if word_of(node) not in _VIEWS or before is None or after is None or not same_shape(before, after):
        return False
    same_strides = all(same(a, b) for a, b in zip(before.stride(), after.stride(), strict=True))
    return same_strides and storage_of(before) == storage_of(after) is not None
