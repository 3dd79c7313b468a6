"""The operator as autograd and torch.compile see it.

Eager calls go through an `autograd.Function`, which costs a call far less than a registered formula; the registered
operators `film_kernels::conv_film` and `film_kernels::conv_film_backward` serve torch.compile, torch.export and
whatever else watches the dispatcher. Both use the same two functions, `_forward` and `gradients`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from . import reference
from .arguments import NAMES, Sides, Tensors, kinds_of, remembered_problem
from .backends import BACKENDS, check_backend, choose, remembered_choice
from .backends.base import Backend, Gradients
from .problem import Problem, gradient_strides, strides_of, writes_channels_last

Wanted = Sequence[bool]


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


def _has_rules_of_its_own(tensor: Tensor | None) -> bool:
    """Whether `tensor` is of a subclass, such as DTensor, that says itself what standard operators do to it, and knows
    no others."""
    if tensor is None or type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__:
        return False
    return not type(tensor).__module__.startswith(
        "torch._subclasses."
    )  # fake and functional tensors, which know them all


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


def gradients(
    problem: Problem, backend: Backend, grad: Tensor, kept: Tensor, tensors: Tensors, wanted: Wanted
) -> Gradients:
    """The gradients of (input, weight, bias, gamma, beta), None where `wanted` says so, that of the weight with the
    weight's strides: DistributedDataParallel and optimisers compare them."""
    grad_input, grad_weight, *rest = backend.backward(problem, grad, kept, *tensors, wanted)
    weight = tensors[1]
    if grad_weight is not None and grad_weight.stride() != weight.stride():
        grad_weight = _with_strides(grad_weight, gradient_strides(weight))
    return grad_input, grad_weight, *rest  # type: ignore[return-value]


def differentiable_gradients(
    problem: Problem, grad: Tensor, tensors: Sequence[Tensor | None], wanted: Wanted
) -> Gradients:
    """`gradients` by the plain formula, to be differentiated again.

    It is differentiated with respect to fresh views of the arguments: they have histories of their own, in which one
    may depend on another, and which `torch.autograd.grad` must not walk into.
    """

    def fresh(tensor: Tensor | None, asked: bool) -> Tensor | None:
        if tensor is None:
            return None
        return tensor.detach().requires_grad_() if asked and not tensor.requires_grad else tensor.view_as(tensor)

    views = [fresh(tensor, asked) for tensor, asked in zip(tensors, wanted, strict=True)]
    chosen = [view for view, asked in zip(views, wanted, strict=True) if asked]
    y = reference.forward(problem, *views)  # type: ignore[arg-type]
    found = iter(torch.autograd.grad(y, chosen, grad, create_graph=True, allow_unused=True))  # type: ignore[arg-type]
    return tuple(next(found) if asked else None for asked in wanted)  # type: ignore[return-value]


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
        _check_saved(problem, input, weight, gamma)
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


def _check_saved(problem: Problem, input: Tensor, weight: Tensor, gamma: Tensor | None) -> None:
    """Raise RuntimeError unless these, which come back from saved-tensor hooks, are still what `problem` says: the
    hooks may have compressed, moved or copied them."""
    if not (
        _is_as_saved(problem, input, problem.input_shape)
        and _is_as_saved(problem, weight, problem.weight_shape)
        and (gamma is None or _is_as_saved(problem, gamma, (problem.batch, problem.out_channels)))
    ):
        shapes = (problem.input_shape, problem.weight_shape, problem.out_shape[:2])
        for name, tensor, shape in zip(("input", "weight", "gamma"), (input, weight, gamma), shapes, strict=True):
            if tensor is not None and not _is_as_saved(problem, tensor, shape):
                raise RuntimeError(_came_back(problem, name, tensor, shape, problem.dtype))


def _is_as_saved(problem: Problem, tensor: Tensor, shape: Sequence[int]) -> bool:
    return tensor.dtype is problem.dtype and tensor.shape == shape and tensor.device == problem.device


def _came_back(problem: Problem, name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype) -> str:
    return (
        f"{name}, saved for backward as {dtype} of shape {tuple(shape)} on {problem.device}, came back as "
        f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"
    )


def checked_kept(problem: Problem, kept: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """What a backend kept for itself, as it comes back, made dense. Bits may have been through another dtype, as
    numbers."""
    found = kept
    if kept.dtype is not dtype and dtype is torch.uint8 and kept.dtype.is_floating_point:
        found = kept.to(dtype)
        if not torch.equal(found.to(kept.dtype), kept):
            raise RuntimeError(f"{_came_back(problem, 'kept', kept, shape, dtype)}, with other values")
    if found.dtype is not dtype or found.shape != tuple(shape) or found.device != problem.device:
        raise RuntimeError(_came_back(problem, "kept", kept, shape, dtype))
    return found.contiguous(memory_format=torch.contiguous_format if dtype is torch.uint8 else problem.memory_format)


# The registered operators. Options travel as plain values, and each side makes the Problem from them again. The memory
# format of the output is one of them: what it is found from, strides of dimensions of size 1 too, compilers change.

_OPTIONS = (
    "int[] stride, int[] padding_before, int[] padding_after, int[] dilation, int groups, str activation, "
    "float negative_slope, str film_position, float gamma_offset, str backend"
)
torch.library.define(
    "film_kernels::conv_film",
    "(Tensor input, Tensor weight, Tensor? bias, Tensor? gamma, Tensor? beta, "
    f"{_OPTIONS}, bool keep, bool? channels_last=None) -> (Tensor, Tensor)",
)
torch.library.define(
    "film_kernels::conv_film_backward",
    "(Tensor grad, Tensor kept, Tensor input, Tensor weight, Tensor? bias, Tensor? gamma, Tensor? beta, "
    f"{_OPTIONS}, bool[] wanted, bool? channels_last=None) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


_OPTIONS_COUNT = _OPTIONS.count(",") + 1


def _split(rest: Sequence) -> tuple[Sequence, Any, bool | None]:
    """(options, what comes after them, channels_last): the last is left out where it has its default."""
    options, (value, *last) = rest[:_OPTIONS_COUNT], rest[_OPTIONS_COUNT:]
    return options, value, last[0] if last else None


def _operator(problem: Problem, pin: str | None, tensors: Tensors) -> Tensor:
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    padding_before, padding_after = ([pair[side] for pair in problem.padding] for side in (0, 1))
    return torch.ops.film_kernels.conv_film(
        *tensors, problem.stride, padding_before, padding_after, problem.dilation, problem.groups, problem.activation,
        problem.negative_slope, problem.film_position, problem.gamma_offset, pin or "", keep, problem.channels_last,
    )[0]  # fmt: skip


def _served(tensors: Tensors, options: Sequence, channels_last: bool | None) -> tuple[Problem, Backend]:
    """The Problem and who serves it. Nothing has been checked yet: anybody may call a registered operator."""
    stride, before, after, dilation, *rest, pin = options
    if channels_last is None:
        channels_last = writes_channels_last(*tensors[:2])
    sides = Sides(tuple(before), tuple(after))
    problem = remembered_problem(kinds_of(*tensors), tuple(stride), sides, tuple(dilation), *rest, channels_last)
    for name, factor in zip(NAMES[3:], tensors[3:], strict=True):
        if factor is not None and factor.shape != (problem.batch, problem.out_channels):
            raise ValueError(f"{name} must have shape (N, K) = {problem.out_shape[:2]}, got {tuple(factor.shape)}")
    if pin:
        check_backend("backend", pin)
    try:
        return problem, remembered_choice(problem, pin or None)
    except TypeError:  # symbolic sizes have no hash
        return problem, choose(problem, pin or None)


def _forward(input, weight, bias, gamma, beta, *rest):
    options, keep, channels_last = _split(rest)
    tensors = (input, weight, bias, gamma, beta)
    problem, backend = _served(tensors, options, channels_last)
    y, kept = backend.forward(problem, *tensors, keep)
    if not keep or kept is None:
        return _strided(y, problem), (backend.kept_like(problem) if keep else input.new_empty(0))
    return _strided(y, problem), _strided(kept, problem)


def _strided(tensor: Tensor, problem: Problem) -> Tensor:
    """`tensor` with the strides that were promised, those of dimensions of size 1 too; kept bits as they are."""
    if tensor.dim() != problem.spatial_rank + 2:
        return tensor
    return _with_strides(tensor, strides_of(tensor.shape, problem.channels_last))


def _with_strides(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    if tensor.stride() == strides:
        return tensor
    return tensor.new_empty_strided(tensor.shape, strides).copy_(tensor)


def _empty(like: Tensor, shape: Sequence[int], channels_last: bool = False) -> Tensor:
    return like.new_empty_strided(shape, strides_of(shape, channels_last))


def _forward_fake(input, weight, bias, gamma, beta, *rest):
    options, keep, channels_last = _split(rest)
    problem, backend = _served((input, weight, bias, gamma, beta), options, channels_last)
    y = _empty(input, problem.out_shape, problem.channels_last)
    return y, _strided(backend.kept_like(problem), problem) if keep else input.new_empty(0)


def _check_for_backward(problem: Problem, grad: Tensor, kept: Tensor, wanted: Sequence) -> None:
    """What the registered backward is given beside the tensors of forward."""
    if len(wanted) != len(NAMES):
        raise ValueError(f"wanted must have {len(NAMES)} values, one for each of {', '.join(NAMES)}, got {len(wanted)}")
    for name, tensor in (("grad", grad), ("kept", kept)):
        if tensor.device != problem.device or tensor.layout is not torch.strided:
            raise ValueError(
                f"{name} must be a dense tensor on the device of input, {problem.device}, got {tensor.layout} on "
                f"{tensor.device}"
            )


def _backward(grad, kept, input, weight, bias, gamma, beta, *rest):
    options, wanted, channels_last = _split(rest)
    tensors = (input, weight, bias, gamma, beta)
    problem, backend = _served(tensors, options, channels_last)
    _check_for_backward(problem, grad, kept, wanted)
    if (grad.shape, grad.dtype) != (problem.out_shape, problem.dtype):
        raise ValueError(
            f"grad must be {problem.dtype} of shape {problem.out_shape}, as the output was, got {grad.dtype} of shape "
            f"{tuple(grad.shape)}"
        )
    like = backend.kept_like(problem._replace(device=torch.device("meta")))
    kept = checked_kept(problem, kept, like.shape, like.dtype)
    found = gradients(problem, backend, grad, kept, tensors, _existing(tensors, wanted))
    results = [grad.new_empty(0) if gradient is None else gradient for gradient in found]
    return _strided(results[0], problem), results[1], *(result.contiguous() for result in results[2:])


def _existing(tensors: Sequence[Tensor | None], wanted: Sequence[bool]) -> Wanted:
    """What is wanted of tensors that are there."""
    return tuple(asked and tensor is not None for tensor, asked in zip(tensors, wanted, strict=True))


def _backward_fake(grad, kept, input, weight, bias, gamma, beta, *rest):
    options, wanted, channels_last = _split(rest)
    tensors = (input, weight, bias, gamma, beta)
    problem, _ = _served(tensors, options, channels_last)
    _check_for_backward(problem, grad, kept, wanted)
    rows = (problem.batch, problem.out_channels)
    likes = (
        lambda: _empty(grad, problem.input_shape, problem.channels_last),
        lambda: weight.new_empty_strided(weight.shape, gradient_strides(weight)),
        lambda: _empty(grad, rows[1:]),
        lambda: _empty(grad, rows),
        lambda: _empty(grad, rows),
    )
    existing = _existing(tensors, wanted)
    return tuple(like() if asked else grad.new_empty(0) for like, asked in zip(likes, existing, strict=True))


def _setup_context(ctx, inputs, output):
    ctx.options, _, ctx.channels_last = _split(inputs[5:])
    ctx.save_for_backward(output[1], *inputs[:5])


def _operator_backward(ctx, grad, _):
    kept, *tensors = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:5]
    rest = (None,) * (len(ctx.needs_input_grad) - 5)
    if torch.is_grad_enabled():
        problem, _ = _served(tensors, ctx.options, ctx.channels_last)
        return *differentiable_gradients(problem, grad, tensors, wanted), *rest
    found = torch.ops.film_kernels.conv_film_backward(
        grad, kept, *tensors, *ctx.options, list(wanted), ctx.channels_last
    )
    return *(gradient if asked else None for gradient, asked in zip(found, wanted, strict=True)), *rest


for _name, _kernel, _fake in (
    ("film_kernels::conv_film", _forward, _forward_fake),
    ("film_kernels::conv_film_backward", _backward, _backward_fake),
):
    torch.library.impl(_name, "CompositeExplicitAutograd", _kernel)
    torch.library.register_fake(_name, _fake)
torch.library.register_autograd("film_kernels::conv_film", _operator_backward, setup_context=_setup_context)
