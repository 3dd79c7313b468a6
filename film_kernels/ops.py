"""The operator as autograd and torch.compile see it.

Eager calls go through an `autograd.Function`, which costs a call far less than a registered formula; the registered
operators (registered.py) serve torch.compile, torch.export and whatever else watches the dispatcher. Both use the same
two functions, a backend's `forward` and `derivatives.gradients`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from . import reference
from .arguments import Tensors
from .backends import BACKENDS, remembered_choice
from .derivatives import differentiable_gradients, gradients
from .problem import Problem
from .registered import operator
from .saved import check_saved, checked_kept


def conv_film(
    problem: Problem,
    pin: str | None,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
) -> Tensor:
    """`y` by the pinned backend or the best one, differentiable. The arguments come checked, from the front door.

    Raises ValueError where the pinned backend cannot serve, with its reason.
    """
    tensors = (input, weight, bias, gamma, beta)
    if _is_watched(tensors):
        unusual = pin is None and BACKENDS["vendor"].why_not(problem) is not None
        unusual = unusual or (pin is None and (_is_exported() or _is_counted()))
        if is_transformed() or pin == "reference" or unusual or any(map(_has_rules_of_its_own, tensors)):
            return _plain(problem, pin, tensors)
        return operator(problem, pin, tensors)
    backend = remembered_choice(problem, pin)
    if backend.name == "reference":
        return reference.forward(problem, *tensors)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _ConvFilm.apply(problem, backend, *tensors)
    return backend.forward(problem, *tensors, False)[0]


def _is_watched(tensors: Tensors) -> bool:
    """Whether someone (torch.compile, functorch, a dispatch mode, a tensor subclass) must see an operator."""
    return (
        torch.compiler.is_compiling()
        or _is_exported()
        or is_transformed()
        or torch._C._len_torch_dispatch_stack() > 0
        or any(t is not None and type(t) not in (Tensor, torch.nn.Parameter) for t in tensors)
    )


def _has_rules_of_its_own(tensor: Tensor | None) -> bool:
    """Whether `tensor` is of a subclass, such as DTensor, that says itself what standard operators do to it, and knows
    no others."""
    if tensor is None or type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__:
        return False
    module = type(tensor).__module__
    return not module.startswith("torch._subclasses.")  # fake and functional tensors, which know them all


def _is_exported() -> bool:
    """Whether the graph is for somebody else (torch.export, ONNX, TorchScript), who knows standard operators only."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def _is_counted() -> bool:
    """Whether `torch.utils.flop_counter` counts: as it knows the library's convolution, it is shown that. (To register
    a formula with it would import it, and Triton with it, for everybody.)"""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() == 0:
        return False
    modes = _get_current_dispatch_mode_stack()
    return any(type(mode).__module__ == "torch.utils.flop_counter" for mode in modes)


def is_transformed() -> bool:
    """Whether torch.func or forward-mode AD is at work, which the plain formula serves, to any order."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def _plain(problem: Problem, pin: str | None, tensors: Tensors) -> Tensor:
    if pin not in (None, "reference"):
        raise ValueError(
            f"backend {pin!r} cannot serve this call: torch.func, forward-mode AD and tensor subclasses with operators "
            "of their own go through 'reference'"
        )
    return reference.forward(problem, *tensors)


class _ConvFilm(torch.autograd.Function):
    """Saved is what an ordinary backward reads. Where it reads bias or beta, it reads copies, a number a channel:
    plain PyTorch keeps neither, so a user may write into them between forward and backward."""

    @staticmethod
    def forward(ctx, problem, backend, input, weight, bias, gamma, beta):
        y, kept = backend.forward(problem, input, weight, bias, gamma, beta, True)
        ctx.save_for_backward(kept, input, weight, gamma)
        ctx.problem, ctx.backend, ctx.kept_as = problem, backend, (kept.shape, kept.dtype)
        reads_bias, reads_beta = backend.reads(problem, ctx.needs_input_grad[2:])
        ctx.bias_copy = bias.clone() if reads_bias and bias is not None else None
        ctx.beta_copy = beta.clone() if reads_beta and beta is not None else None
        ctx.bias, ctx.beta, ctx.versions = bias, beta, (_version(bias), _version(beta))
        return y

    @staticmethod
    def backward(ctx, grad):
        problem, wanted = ctx.problem, ctx.needs_input_grad[2:]
        kept, input, weight, gamma = ctx.saved_tensors
        check_saved(problem, input, weight, gamma)
        if torch.is_grad_enabled():
            _check_unchanged(ctx)
            tensors = (input, weight, ctx.bias, gamma, ctx.beta)
            return None, None, *differentiable_gradients(problem, grad, tensors, wanted)
        tensors = (input, weight, ctx.bias_copy, gamma, ctx.beta_copy)
        kept = checked_kept(problem, kept, *ctx.kept_as)
        return None, None, *gradients(problem, ctx.backend, grad, kept, tensors, wanted)


def _check_unchanged(ctx) -> None:
    """Raise where the values of bias or beta, which a second derivative needs, are no longer those of forward."""
    for name, tensor, before in zip(("bias", "beta"), (ctx.bias, ctx.beta), ctx.versions, strict=True):
        if _version(tensor) != before:
            raise RuntimeError(
                f"{name}, whose values a second derivative needs, has been modified by an inplace operation since "
                "conv_film was called"
            )


def _version(tensor: Tensor | None) -> int:
    return 0 if tensor is None or tensor.is_inference() else tensor._version
