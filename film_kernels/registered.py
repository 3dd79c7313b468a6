"""The registered operators, `film_kernels::conv_film` and `film_kernels::conv_film_backward`, and the like of every
operator.

Options travel as plain values, and each side makes the record from them again, with all its checks: anybody may call
these with anything. The memory format of the output is one of the options: it is found from strides, and compilers
change those of dimensions of size 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .arguments import kinds_of, remembered
from .backends import check_backend, choose, remembered_choice
from .backends.base import Kernels
from .derivatives import Wanted, differentiable_gradients, gradients, with_strides
from .layouts import gradient_strides, strides_of
from .operators import OPERATORS, Operator, Some, operator_of
from .problems import Problem
from .saved import checked_kept


class _Call(NamedTuple):
    """What a registered operator was called with, in order."""

    tensors: Some
    options: Sequence[Any]  # as Operator.options_schema names them
    backend: str
    last: Any  # forward's `for_backward`, or backward's `wanted`
    channels_last: bool | None  # None where it is left out: then the tensors tell


def call_registered(problem: Problem, pin: str | None, tensors: Some, tells: bool) -> tuple[Tensor, Tensor]:
    """(y, kept) by the registered operator; `kept` is empty where neither a gradient will be asked for nor the caller
    wants to be told it."""
    for_backward = tells or (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors))
    operator = operator_of(problem)
    registered = getattr(torch.ops.film_kernels, operator.name)
    return registered(*tensors, *operator.packed(problem), pin or "", for_backward, problem.channels_last)


class _Registered:
    """What the dispatcher calls for one operator: a kernel and a fake of each pass, and the derivative."""

    def __init__(self, operator: Operator) -> None:
        self.operator, self.count = operator, len(operator.tensors)

    def forward(self, *arguments):
        call = self._read(arguments)
        problem, kernels = self._served(call)
        y, kept = kernels.forward(problem, call.tensors, call.last)
        if not call.last or kept is None:
            return _strided(y, problem), (kernels.kept_like(problem) if call.last else y.new_empty(0))
        return _strided(y, problem), _strided(kept, problem)

    def forward_fake(self, *arguments):
        call = self._read(arguments)
        problem, kernels = self._served(call)
        input = arguments[0]
        y = _empty(input, problem.out_shape, problem.channels_last)
        return y, _strided(kernels.kept_like(problem), problem) if call.last else input.new_empty(0)

    def backward(self, grad, kept, *arguments):
        call = self._read(arguments)
        problem, kernels = self._served(call)
        self._check_for_backward(problem, grad, kept, call.last)
        if (grad.shape, grad.dtype) != (problem.out_shape, problem.dtype):
            raise ValueError(
                f"grad must be {problem.dtype} of shape {problem.out_shape}, as the output was, got {grad.dtype} of "
                f"shape {tuple(grad.shape)}"
            )
        like = kernels.kept_like(problem._replace(device=torch.device("meta")))
        kept = checked_kept(problem, kept, like.shape, like.dtype)
        found = gradients(problem, kernels, grad, kept, call.tensors, _existing(call.tensors, call.last))
        input, *others = (grad.new_empty(0) if gradient is None else gradient for gradient in found)
        parameter = self.operator.parameter_at
        others = [other if at == parameter else other.contiguous() for at, other in enumerate(others, start=1)]
        return _strided(input, problem), *others

    def backward_fake(self, grad, kept, *arguments):
        call = self._read(arguments)
        problem, _ = self._served(call)
        self._check_for_backward(problem, grad, kept, call.last)
        results = [grad.new_empty(0) for _ in call.tensors]
        for at, asked in enumerate(_existing(call.tensors, call.last)):
            if asked and at == self.operator.parameter_at:
                parameter = call.tensors[at]
                results[at] = parameter.new_empty_strided(parameter.shape, gradient_strides(parameter))
            elif asked:
                results[at] = _empty(call.tensors[at], problem.tensor_shapes[at], at == 0 and problem.channels_last)
        return tuple(results)

    def setup_context(self, ctx, inputs, output):
        ctx.call = self._read(inputs)._replace(tensors=())
        ctx.save_for_backward(output[1], *inputs[: self.count])

    def derivative(self, ctx, grad, _):
        kept, *tensors = ctx.saved_tensors
        call, wanted = ctx.call, ctx.needs_input_grad[: self.count]
        rest = (None,) * (len(ctx.needs_input_grad) - self.count)
        if torch.is_grad_enabled():
            problem, _ = self._served(call._replace(tensors=tensors))
            return *differentiable_gradients(problem, grad, tensors, wanted), *rest
        registered = getattr(torch.ops.film_kernels, f"{self.operator.name}_backward")
        found = registered(grad, kept, *tensors, *call.options, call.backend, list(wanted), call.channels_last)
        return *(gradient if asked else None for gradient, asked in zip(found, wanted, strict=True)), *rest

    def _read(self, arguments: Sequence[Any]) -> _Call:
        """The dispatcher leaves out what has its default."""
        tensors, rest = arguments[: self.count], arguments[self.count :]
        options = rest[: len(self.operator.option_names)]
        backend, last, *more = rest[len(options) :]
        return _Call(tensors, options, backend, last, more[0] if more else None)

    def _served(self, call: _Call) -> tuple[Any, Kernels]:
        """The record of `call` and who serves it. Nothing has been checked before."""
        operator, channels_last = self.operator, call.channels_last
        if channels_last is None:
            channels_last = operator.writes_channels_last(call.tensors)
        kinds, options = kinds_of(call.tensors), operator.options_of(call.options)
        problem = remembered(operator.problem_of, kinds, channels_last, options)
        n_k = problem.tensor_shapes[-1]
        for at in (-2, -1):  # gamma and beta, which the front door would have expanded
            tensor = call.tensors[at]
            if tensor is not None and tensor.shape != n_k:
                raise ValueError(f"{operator.tensors[at]} must have shape (N, K) = {n_k}, got {tuple(tensor.shape)}")
        pin = call.backend or None
        if pin is not None:
            check_backend("backend", pin)
        try:
            return problem, remembered_choice(problem, pin)
        except TypeError:  # symbolic sizes have no hash
            return problem, choose(problem, pin).of(problem)

    def _check_for_backward(self, problem: Problem, grad: Tensor, kept: Tensor, wanted: Sequence[bool]) -> None:
        """What the registered backward is given beside the tensors of forward."""
        if len(wanted) != self.count:
            names = ", ".join(self.operator.tensors)
            raise ValueError(f"wanted must have {self.count} values, one for each of {names}, got {len(wanted)}")
        for name, tensor in (("grad", grad), ("kept", kept)):
            if tensor is None:  # the dispatcher takes that for an undefined tensor
                raise ValueError(f"{name} must be a tensor, got None")
            if tensor.device != problem.device or tensor.layout is not torch.strided:
                raise ValueError(
                    f"{name} must be a dense tensor on the device of input, {problem.device}, got {tensor.layout} on "
                    f"{tensor.device}"
                )


def _strided(tensor: Tensor, problem: Problem) -> Tensor:
    """`tensor` with the strides that were promised, those of dimensions of size 1 too; kept bits and statistics as they
    are."""
    if tensor.dim() != len(problem.out_shape) or tensor.dtype is torch.uint8:
        return tensor
    return with_strides(tensor, strides_of(tensor.shape, problem.channels_last))


def _empty(like: Tensor, shape: Sequence[int], channels_last: bool = False) -> Tensor:
    return like.new_empty_strided(shape, strides_of(shape, channels_last))


def _existing(tensors: Some, wanted: Sequence[bool]) -> Wanted:
    """What is wanted of tensors that are there."""
    return tuple(asked and tensor is not None for tensor, asked in zip(tensors, wanted, strict=True))


def register(operator: Operator) -> None:
    """Make the two operators of `operator` known to the dispatcher."""
    name, registered = f"film_kernels::{operator.name}", _Registered(operator)
    tensors = (f"Tensor{'?' if at >= operator.required else ''} {t}" for at, t in enumerate(operator.tensors))
    given = f"{', '.join(tensors)}, {operator.options_schema}, str backend"
    results = ", ".join(["Tensor"] * registered.count)
    for full_name, schema, kernel, fake in (
        (
            name,
            f"({given}, bool for_backward, bool? channels_last=None) -> (Tensor, Tensor)",
            registered.forward,
            registered.forward_fake,
        ),
        (
            f"{name}_backward",
            f"(Tensor grad, Tensor kept, {given}, bool[] wanted, bool? channels_last=None) -> ({results})",
            registered.backward,
            registered.backward_fake,
        ),
    ):
        torch.library.define(full_name, schema)
        torch.library.impl(full_name, "CompositeExplicitAutograd", kernel)
        torch.library.register_fake(full_name, fake)
    torch.library.register_autograd(name, registered.derivative, setup_context=registered.setup_context)


for _operator in OPERATORS.values():
    register(_operator)
