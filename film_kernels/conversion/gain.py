"""Whether one call is faster, on a CPU, than the operations that it would stand for. On a GPU every site is taken."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from ..backends import BACKENDS, choose, pinned
from ..backends.cpu import CpuConvFilm
from ..backends.cpu_scaling import CpuScaling, is_scaling
from ..layouts import is_channels_last, writes_channels_last
from ..problems.conv_film import ConvFilm, problem_of
from .match import Match
from .nodes import tensor_of
from .reasons import Reason
from .records import Affine, Convolution, Norm

# Where PyTorch's own convolution serves, in one pass of the kernels or two of PyTorch's behind it, that gains something
# in 16 bits alone, which a pass then widens and rounds once.
_PASSES = (
    "not faster here: PyTorch's own convolution would serve, and what stands behind it takes as long as it does now"
)
_NARROW = (torch.float16, torch.bfloat16)
_ALONE = "not faster here: PyTorch's own convolution is, of these sizes"
_SMALL = "not faster here: of so few elements a call costs more than it saves"
_INDUCTOR = "not faster here: Inductor has as few passes over memory, in the memory format that it chooses"
_LITTLE = "not faster here: of so few products, between PyTorch's own convolutions, a call costs more than it saves"
# In a training step, one of the kernels here among PyTorch's costs the model some 0.4 ms beside its own time: each
# drives the other's code out of the caches, forward and backward, and autograd calls Python. There a convolution has to
# have so many products, or save passes over so many elements.
_LEAST_PRODUCTS_IN_TRAINING = 1 << 27
_MANY_ELEMENTS = 1 << 19
# Below so many elements norm_film costs more in its call than it saves in passes, where it stands for a norm and an
# activation. Every operation more, of FiLM or of a norm that is written out, halves that.
_LEAST_ELEMENTS, _LEAST_ELEMENTS_AMONG_OTHERS = 1 << 14, 1 << 18


def judged(
    match: Match, among_others: bool, frozen: bool, training: bool | None, before_inductor: bool = False
) -> Match:
    """`match`, with a reason where it would be fused and gain nothing by it. `among_others` says whether what stands
    around it is mostly PyTorch's own, `frozen` whether weights are packed once, and `training` whether a backward will
    follow; where that is None, it is taken from whether autograd records the graph now. `before_inductor` says whether
    Inductor compiles what is left. Where the user insists on a backend, nothing is judged."""
    if match.reason is not None or pinned(None) is not None:
        return match
    training = _is_recorded(match) if training is None else training
    return replace(match, reason=_why_not_faster(match, among_others, frozen, training, before_inductor))


def _why_not_faster(
    match: Match, among_others: bool, frozen: bool, training: bool, before_inductor: bool
) -> Reason | None:
    result = tensor_of(match.nodes[-1])
    if result is None or result.device.type != "cpu" or BACKENDS["cpu"].unavailable() is not None:
        return None
    if before_inductor and _is_inductors(match, among_others, result):
        return Reason(_INDUCTOR)
    if match.norm is not None:
        least = _LEAST_ELEMENTS_AMONG_OTHERS if training and among_others else _LEAST_ELEMENTS
        more = max(len(match.nodes) - 2, 0)
        return Reason(_SMALL) if math.prod(_known(result.shape)) < least >> more else None
    problem = _problem_of(match, result.dtype)
    if problem is None:
        return None
    cpu = BACKENDS["cpu"].of(problem)
    assert isinstance(cpu, (CpuConvFilm, CpuScaling))
    if match.film is None:
        slow = cpu.why_not(problem) is not None or cpu.is_slow(problem, "alone packed" if frozen else "alone")
        return Reason(_ALONE) if slow else None
    activation = "none" if match.activation is None else match.activation.name
    if choose(problem._replace(has_gamma=True, has_beta=True, activation=activation), None).name == "cpu":
        little = has_little(problem) and math.prod(problem.out_shape) < _MANY_ELEMENTS
        return Reason(_LITTLE) if training and among_others and little and not is_scaling(problem) else None
    passes = sum(isinstance(link.operation, (Affine, Norm)) for link in match.links) + (activation != "none")
    return None if passes > 1 and result.dtype in _NARROW else Reason(_PASSES)


def _is_inductors(match: Match, among_others: bool, result: Tensor) -> bool:
    """Whether Inductor, which makes one pass of a norm and of all that stands around it, is as fast on CPUs. Of a
    convolution with FiLM it is where something else still reads the result in a pass, as an activation does that is not
    taken in; and where it has maps in channels_last for the convolutions that are left to it, so that each call here
    would turn them twice."""
    if match.norm is not None:
        return True
    turned = result.dim() == 4 and not is_channels_last(result)
    return match.film is not None and among_others and (match.activation is None or turned)


def has_little(problem: ConvFilm) -> bool:
    """Whether a convolution has too few products to make up, in training, for what stands around its call."""
    return math.prod(problem.out_shape) * math.prod(problem.weight_shape[1:]) < _LEAST_PRODUCTS_IN_TRAINING


def _is_recorded(match: Match) -> bool:
    result = tensor_of(match.nodes[-1])
    return torch.is_grad_enabled() and result is not None and result.requires_grad


def _problem_of(match: Match, dtype: torch.dtype) -> ConvFilm | None:
    """The convolution alone; None where the graph does not tell what it is called with."""
    assert isinstance(match.root, Convolution)
    arguments = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **match.root.arguments}
    input, weight = tensor_of(arguments["input"]), tensor_of(arguments.get("weight"))
    options = tuple(arguments[name] for name in ("stride", "padding", "dilation", "groups"))
    if input is None or weight is None or any(isinstance(option, fx.Node) for option in options):
        return None
    return convolution_alone(input, weight, dtype, options)


def convolution_alone(input: Tensor, weight: Tensor, dtype: torch.dtype, options: tuple[Any, ...]) -> ConvFilm:
    """The record of a convolution with nothing behind it; `options` are stride, padding, dilation and groups."""
    kinds: Any = (*(_kind_of(tensor, dtype) for tensor in (input, weight)), None, None, None)
    channels_last = writes_channels_last(input, weight)
    return problem_of(kinds, channels_last, (*options, "none", 0.01, "post", 0.0, "fast"))


def _kind_of(tensor: Tensor, dtype: torch.dtype) -> Any:
    return torch.Size(_known(tensor.shape)), dtype, tensor.device, torch.strided


def _known(sizes: Iterable[Any]) -> list[int]:
    """Sizes as they are in this call; those that may be others in the next are asked for without a guard."""
    return [size if isinstance(size, int) else size.node.hint or 1 for size in sizes]
