"""The operator as autograd and torch.compile see it.

Eager calls go through an `autograd.Function`, which costs a call far less than a registered formula; the registered
operators `film_kernels::conv_film` and `film_kernels::conv_film_backward` serve torch.compile, torch.export and
whatever else watches the dispatcher. Both use the same two functions, `_forward` and `gradients`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from . import reference
from .arguments import Tensors
from .backends import BACKENDS, choose, remembered_choice
from .backends.base import Backend, Gradients
from .problem import Problem, is_channels_last


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
        if is_transformed() or pin == "reference" or unusual or (pin is None and (_is_exported() or _is_counted())):
            return _plain(problem, pin, tensors)
        return _operator(problem, pin, tensors)
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
            f"backend {pin!r} cannot serve this call: torch.func and forward-mode AD go through 'reference'"
        )
    return reference.forward(problem, *tensors)


def gradients(
    problem: Problem,
    backend: Backend,
    grad: Tensor,
    kept: Tensor,
    tensors: Tensors,
    wanted: Sequence[bool],
) -> Gradients:
    """The gradients of (input, weight, bias, gamma, beta), None where `wanted` says so.

    With `create_graph=True` they come from the plain formula, so that they can be differentiated again.
    """
    if torch.is_grad_enabled() and (grad.requires_grad or any(t is not None and t.requires_grad for t in tensors)):
        chosen = [t for t, asked in zip(tensors, wanted, strict=True) if asked and t is not None]
        found = iter(
            torch.autograd.grad(
                reference.forward(problem, *tensors), chosen, grad, create_graph=True, allow_unused=True
            )
        )
        return tuple(next(found) if asked else None for asked in wanted)  # type: ignore[return-value]
    return backend.backward(problem, grad, kept, *tensors, wanted)


class _ConvFilm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, problem, backend, *tensors):
        y, kept = backend.forward(problem, *tensors, True)
        ctx.save_for_backward(kept, *tensors)
        ctx.problem, ctx.backend = problem, backend
        return y

    @staticmethod
    def backward(ctx, grad):
        kept, *tensors = ctx.saved_tensors
        wanted = ctx.needs_input_grad[2:]
        return None, None, *gradients(ctx.problem, ctx.backend, grad, kept, tensors, wanted)


# The registered operators. Options travel as plain values, and each side makes the Problem from them again.

_OPTIONS = (
    "int[] stride, int[] padding_before, int[] padding_after, int[] dilation, int groups, str activation, "
    "float negative_slope, str film_position, float gamma_offset, str backend"
)
torch.library.define(
    "film_kernels::conv_film",
    "(Tensor input, Tensor weight, Tensor? bias, Tensor? gamma, Tensor? beta, "
    f"{_OPTIONS}, bool keep) -> (Tensor, Tensor)",
)
torch.library.define(
    "film_kernels::conv_film_backward",
    "(Tensor grad, Tensor kept, Tensor input, Tensor weight, Tensor? bias, Tensor? gamma, Tensor? beta, "
    f"{_OPTIONS}, bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


def _operator(problem: Problem, pin: str | None, tensors: Tensors) -> Tensor:
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    padding_before, padding_after = ([pair[side] for pair in problem.padding] for side in (0, 1))
    return torch.ops.film_kernels.conv_film(
        *tensors, problem.stride, padding_before, padding_after, problem.dilation, problem.groups, problem.activation,
        problem.negative_slope, problem.film_position, problem.gamma_offset, pin or "", keep,
    )[0]  # fmt: skip


def _served(tensors: Tensors, options: Sequence) -> tuple[Problem, Backend]:
    input, weight, bias, gamma, beta = tensors
    stride, before, after, dilation, groups, activation, negative_slope, film_position, gamma_offset, pin = options
    problem = Problem(
        tuple(input.shape), tuple(weight.shape), tuple(stride), tuple(zip(before, after, strict=True)), tuple(dilation),
        groups, input.dtype, input.device, is_channels_last(input), bias is not None, gamma is not None,
        beta is not None, activation, negative_slope, film_position, gamma_offset,
    )  # fmt: skip
    return problem, choose(problem, pin or None)


def _forward(input, weight, bias, gamma, beta, *options_and_keep):
    *options, keep = options_and_keep
    tensors = (input, weight, bias, gamma, beta)
    problem, backend = _served(tensors, options)
    y, kept = backend.forward(problem, *tensors, keep)
    if kept is None:
        kept = backend.kept_like(problem) if keep else input.new_empty(0)
    return y, kept


def _forward_fake(input, weight, bias, gamma, beta, *options_and_keep):
    *options, keep = options_and_keep
    problem, backend = _served((input, weight, bias, gamma, beta), options)
    y = input.new_empty(problem.out_shape).contiguous(memory_format=problem.memory_format)
    return y, backend.kept_like(problem) if keep else input.new_empty(0)


def _backward(grad, kept, input, weight, bias, gamma, beta, *options_and_wanted):
    *options, wanted = options_and_wanted
    tensors = (input, weight, bias, gamma, beta)
    problem, backend = _served(tensors, options)
    found = backend.backward(problem, grad, kept, *tensors, wanted)
    return tuple(grad.new_empty(0) if gradient is None else gradient for gradient in found)


def _backward_fake(grad, kept, input, weight, bias, gamma, beta, *options_and_wanted):
    *options, wanted = options_and_wanted
    problem, _ = _served((input, weight, bias, gamma, beta), options)
    weight_format = torch.channels_last if is_channels_last(weight) else torch.contiguous_format
    shapes = (
        problem.input_shape,
        problem.weight_shape,
        (problem.out_channels,),
        *[(problem.batch, problem.out_channels)] * 2,
    )
    formats = (problem.memory_format, weight_format, *[torch.contiguous_format] * 3)
    return tuple(
        grad.new_empty(shape).contiguous(memory_format=format) if asked else grad.new_empty(0)
        for shape, format, asked in zip(shapes, formats, wanted, strict=True)
    )


def _setup_context(ctx, inputs, output):
    *ctx.options, _ = inputs[5:]
    ctx.save_for_backward(output[1], *inputs[:5])


def _operator_backward(ctx, grad, _):
    kept, *tensors = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[:5])
    if torch.is_grad_enabled():
        problem, backend = _served(tensors, ctx.options)
        found = gradients(problem, backend, grad, kept, tensors, wanted)
    else:
        found = torch.ops.film_kernels.conv_film_backward(grad, kept, *tensors, *ctx.options, wanted)
    rest = (None,) * (len(ctx.needs_input_grad) - 5)
    return *(gradient if asked else None for gradient, asked in zip(found, wanted, strict=True)), *rest


for _name, _kernel, _fake in (
    ("film_kernels::conv_film", _forward, _forward_fake),
    ("film_kernels::conv_film_backward", _backward, _backward_fake),
):
    torch.library.impl(_name, "CompositeExplicitAutograd", _kernel)
    torch.library.register_fake(_name, _fake)
torch.library.register_autograd("film_kernels::conv_film", _operator_backward, setup_context=_setup_context)
