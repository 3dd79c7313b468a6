"""The registered operators `film_kernels::conv_film` and `film_kernels::conv_film_backward`.

Options travel as plain values, and each side makes the Problem from them again, with all its checks: anybody may call
these with anything. The memory format of the output is one of the options: it is found from strides, and compilers
change those of dimensions of size 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .arguments import NAMES, Sides, Tensors, kinds_of, remembered_problem
from .backends import check_backend, choose, remembered_choice
from .backends.base import Backend
from .derivatives import Wanted, differentiable_gradients, gradients, with_strides
from .problem import Problem, gradient_strides, strides_of, writes_channels_last
from .saved import checked_kept

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


def operator(problem: Problem, pin: str | None, tensors: Tensors) -> Tensor:
    """`y` by the registered operator."""
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    padding_before, padding_after = ([pair[side] for pair in problem.padding] for side in (0, 1))
    return torch.ops.film_kernels.conv_film(
        *tensors, problem.stride, padding_before, padding_after, problem.dilation, problem.groups, problem.activation,
        problem.negative_slope, problem.film_position, problem.gamma_offset, pin or "", keep, problem.channels_last,
    )[0]  # fmt: skip


def _served(tensors: Tensors, options: Sequence, channels_last: bool | None) -> tuple[Problem, Backend]:
    """The Problem and who serves it. Nothing has been checked before."""
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
    return with_strides(tensor, strides_of(tensor.shape, problem.channels_last))


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
