"""The operators as autograd and torch.compile see them, written once for all of them (operators.py).

Eager calls go through an `autograd.Function`, which costs a call far less than a registered formula; the registered
operators (registered.py) serve torch.compile, torch.export and whatever else watches the dispatcher. Both use the same
two functions, a backend's `forward` and `derivatives.gradients`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from .backends import goes_plain, remembered_choice
from .derivatives import differentiable_gradients
from .operators import OPERATORS, Some, operator_of
from .plans import Plan, plan_of
from .problems import Problem
from .registered import call_registered
from .saved import check_saved, checked_kept

_unwrap_if_dead = torch._C._functorch.unwrap_if_dead  # type: ignore[attr-defined]
_PLAIN = frozenset((Tensor, torch.nn.Parameter, type(None)))  # whose operators are PyTorch's own


def call(problem: Problem, pin: str | None, tensors: Some) -> Tensor:
    """`y` by the pinned backend or the best one, differentiable. The arguments come checked, from the front door.

    Raises ValueError where the pinned backend cannot serve, with its reason.
    """
    return call_and_tell(problem, pin, tensors, False)[0]


def call_and_tell(problem: Problem, pin: str | None, tensors: Some, tells: bool = True) -> tuple[Tensor, Tensor | None]:
    """`call`'s y, and what the kernels keep for backward, without a gradient: None where the plain formula served, or
    where not `tells`."""
    if is_watched(tensors):
        unusual = pin is None and (goes_plain(problem) or _is_exported() or _is_counted())
        if is_transformed() or pin == "reference" or unusual or any(map(_has_rules_of_its_own, tensors)):
            return _plain(problem, pin, tensors), None
        y, kept = call_registered(problem, pin, tensors, tells)
        return y, (kept.detach() if tells else None)
    kernels = remembered_choice(problem, pin)
    if kernels.is_plain:
        return operator_of(problem).plain(problem, *tensors), None
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        found = recorded(plan_of(problem, kernels), tensors, tells)
        return found if tells else (found, None)
    return kernels.forward(problem, tensors, tells)


def recorded(plan: Plan, tensors: Some, tells: bool = False) -> Any:
    """`y` with a history, and what the kernels keep where it `tells`."""
    alive = [tensor if tensor is None else _unwrap_if_dead(tensor) for tensor in tensors]
    return _apply_of(type(plan.problem))(plan, tells, *alive)


def is_watched(tensors: Some) -> bool:
    """Whether someone (torch.compile, functorch, a dispatch mode, a tensor subclass) must see an operator."""
    return (
        torch.compiler.is_compiling()  # export too
        or torch._C._is_tracing()
        or is_transformed()
        or torch._C._len_torch_dispatch_stack() > 0
        or not are_plain(tensors)
    )


def are_plain(tensors: Some) -> bool:
    """Whether what operators do to `tensors` is what PyTorch's own do."""
    return _PLAIN.issuperset(map(type, tensors))


def _has_rules_of_its_own(tensor: Tensor | None) -> bool:
    """Whether `tensor` is of a subclass, such as DTensor, that says itself what standard operators do to it, and knows
    no others."""
    if tensor is None or type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__:
        return False
    module = type(tensor).__module__
    return not module.startswith("torch._subclasses.")  # fake and functional tensors, which know them all


def _is_exported() -> bool:
    """Whether the graph is for somebody else (torch.export, ONNX, TorchScript), who knows standard operators only."""
    # What torch.compiler.is_exporting() returns: before PyTorch 2.13 Dynamo has it return True for torch.compile too.
    return torch.compiler._is_exporting_flag or torch.jit.is_tracing()


def _is_counted() -> bool:
    """Whether `torch.utils.flop_counter` counts: as it knows the library's operators, it is shown those. (To register
    a formula with it would import it, and Triton with it, for everybody.)"""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() == 0:
        return False
    modes = _get_current_dispatch_mode_stack()
    return any(type(mode).__module__ == "torch.utils.flop_counter" for mode in modes)


def is_transformed() -> bool:
    """Whether torch.func or forward-mode AD is at work, which the plain formula serves, to any order."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def _plain(problem: Problem, pin: str | None, tensors: Some) -> Tensor:
    if pin not in (None, "reference"):
        raise ValueError(
            f"backend {pin!r} cannot serve this call: torch.func, forward-mode AD and tensor subclasses with operators "
            "of their own go through 'reference'"
        )
    return operator_of(problem).plain(problem, *tensors)


class _Fused(torch.autograd.Function):
    """Saved is what an ordinary backward reads. Where it reads any of the others, those of a number a channel, it reads
    copies: plain PyTorch keeps none of them, so a user may write into them between forward and backward."""

    @staticmethod
    def forward(ctx, plan, tells, *tensors):
        operator = plan.operator
        others = operator.pick_others(tensors)
        y, kept, copies = plan.forward_for(ctx.needs_input_grad)(tensors, others)
        ctx.save_for_backward(kept, *operator.pick_saved(tensors))
        ctx.call = plan, (kept.shape, kept.dtype), others, tuple(map(_version, others)), copies
        if tells:
            ctx.mark_non_differentiable(kept)
            return y, kept
        return y

    @staticmethod
    def backward(ctx, grad, *_):
        (plan, kept_as, others, versions, copies), wanted = ctx.call, ctx.needs_input_grad[2:]
        problem, operator = plan.problem, plan.operator
        kept, *saved = ctx.saved_tensors
        check_saved(plan, saved)
        if torch.is_grad_enabled():
            _check_unchanged(operator, others, versions)
            tensors = plan.as_checked(operator.in_order((*saved, *others)))
            return None, None, *plan.as_given(differentiable_gradients(problem, grad, tensors, wanted))
        tensors = operator.in_order((*saved, *copies))
        kept = checked_kept(problem, kept, *kept_as)
        return None, None, *plan.gradients(grad, kept, tensors, wanted)


@functools.cache
def _function_of(record: type) -> type[_Fused]:
    """`_Fused` by the name of the operator, which is what a user sees of it in `grad_fn`: _ConvFilm for conv_film."""
    name = "".join(word.capitalize() for word in OPERATORS[record].name.split("_"))
    return type(f"_{name}", (_Fused,), {"__module__": __name__})


@functools.cache
def _apply_of(record: type) -> Callable[..., Any]:
    """`_function_of(record).apply` where torch.func is not at work: without what it asks beforehand, a third of its
    time. What it does then, to unwrap what a transform has left behind, `recorded` does."""
    return super(torch.autograd.Function, _function_of(record)).apply  # type: ignore[misc]


def _check_unchanged(operator, others, versions) -> None:
    """Raise where values that a second derivative needs, and that were not saved, are no longer those of forward."""
    for name, tensor, before in zip(operator.others, others, versions, strict=True):
        if tensor is not None and _version(tensor) != before:
            raise RuntimeError(
                f"{name}, whose values a second derivative needs, has been modified by an inplace operation since "
                f"{operator.name} was called"
            )


def _version(tensor: Tensor | None) -> int:
    return 0 if tensor is None or tensor.is_inference() else tensor._version
