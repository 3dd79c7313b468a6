"""The arguments of norm_film, from what a user writes to a record and plain tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import arguments
from .checks import check_types
from .layouts import is_channels_last
from .problems.norm_film import NO_NORM, OPTIONS, REQUIRED, TENSORS, NormFilm, Tensors, problem_of
from .running import Statistics

_NORM, _OFFSET, _CHANNEL_DIM = map(OPTIONS.index, ("norm", "gamma_offset", "channel_dim"))
# CUDA's autocast computes these in float32, and the CPU's leaves all as they are.
_WIDE_UNDER_AUTOCAST = frozenset(("group", "channel", "rms", "l2"))


def prepare(tensors: Tensors, options: tuple[Any, ...], running: Statistics | None) -> tuple[NormFilm, Tensors]:
    """Check the arguments of norm_film, and bring the tensors to the shapes of the design.

    `tensors` is (input, weight, bias, gamma, beta), and `options` are the others in the order of
    `problems.norm_film.OPTIONS`; `running` is None where there are no running statistics. Returns the record and the
    tensors, gamma and beta expanded to (N, C) without a copy. With running statistics that stay as they are, weight and
    bias are what stands for all of the normalisation.
    Raises TypeError or ValueError naming the argument.
    """
    if torch.compiler.is_compiling() or torch._C._is_any_autocast_enabled():  # Dynamo does not trace the latter
        tensors = _autocast(tensors, options[_NORM])
    if not isinstance(tensors[0], Tensor):
        check_types(TENSORS, tensors, REQUIRED)
    offset = options[_OFFSET]
    if isinstance(offset, Tensor):
        check_types(TENSORS, tensors, REQUIRED)
        tensors = _with_offset(tensors, offset, options[_CHANNEL_DIM])
        options = (*options[:_OFFSET], 0.0, *options[_OFFSET + 1 :])
    if running is not None:
        check_types(TENSORS, tensors, REQUIRED)
        running.check(options[_NORM], tensors[0])
        if not running.training and options[_NORM] == "batch":
            return _known_beforehand(tensors, options, running)
    problem, tensors = _prepared(tensors, options)
    if problem.norm == "batch" and problem.eps == 0.0:
        raise ValueError("eps must be more than 0 for norm='batch' in training, as for batch_norm, got 0.0")
    return problem, tensors


def _prepared(tensors: Tensors, options: tuple[Any, ...]) -> tuple[NormFilm, Tensors]:
    input, weight, bias, gamma, beta = tensors
    try:
        kinds = arguments.kinds_of(tensors)
        channels_last = is_channels_last(input)
    except (AttributeError, RuntimeError):
        check_types(TENSORS, tensors, REQUIRED)
        raise
    problem = arguments.remembered(problem_of, kinds, channels_last, arguments.plain_options(options))
    n_c = (problem.batch, problem.channels)
    channel_dim = problem.channel_dim
    return problem, (
        input, weight, bias, arguments.expanded(gamma, n_c, channel_dim), arguments.expanded(beta, n_c, channel_dim),
    )  # fmt: skip


def _known_beforehand(tensors: Tensors, options: tuple[Any, ...], running: Statistics) -> tuple[NormFilm, Tensors]:
    """The call without a normalisation that stands for one by running statistics."""
    problem, (input, weight, bias, gamma, beta) = _prepared(tensors, options)
    dtype = problem.accumulates_in
    # The weight's gradient is a sum of the input without its mean, which cannot be taken from the sum afterwards. (What
    # torch.jit traces, it traces again without gradients, and compares.)
    trained = weight is not None and weight.requires_grad and torch.is_grad_enabled() and not torch.jit.is_tracing()
    if trained and input.dtype == dtype:
        input, running = running.without_mean(input)
    scale, shift = running.folded(dtype, problem.eps, weight, bias)
    problem = problem._replace(norm=NO_NORM, has_weight=True, has_bias=True, parameter_dtype=dtype)
    return problem, (input, scale, shift, gamma, beta)


def _with_offset(tensors: Tensors, offset: Tensor, channel_dim: Any) -> Tensors:
    """`gamma + offset` in gamma's place, for an offset that is a tensor: it may be learnt, and is never read on the
    host."""
    input, weight, bias, gamma, beta = tensors
    offset = arguments.one_number("gamma_offset", offset)
    if gamma is None:
        sizes = input.shape[1:] if channel_dim == 1 else input.shape[-1:]
        gamma = input.new_ones(sizes[:1])  # of an input without channels, which is refused later
    return input, weight, bias, gamma + offset, beta


def _autocast(tensors: Tensors, norm: Any) -> Tensors:
    """The tensors as plain PyTorch has them where autocast is on for their device: a normalisation is of the input's
    dtype or, on some devices, of float32, and FiLM of the widest."""
    input, weight, bias, gamma, beta = tensors
    if not arguments.is_autocast(input):
        return tensors
    target = input.dtype
    if input.device.type != "cpu" and norm in _WIDE_UNDER_AUTOCAST:
        target = torch.promote_types(target, torch.float32)
    for factor in (gamma, beta):
        if isinstance(factor, Tensor) and factor.is_floating_point():
            target = torch.promote_types(target, factor.dtype)

    def cast(t: Any) -> Any:
        return t.to(target) if isinstance(t, Tensor) and t.is_floating_point() else t

    wide = [t if isinstance(t, Tensor) and t.dtype == torch.float32 else cast(t) for t in (weight, bias)]
    if target not in (torch.bfloat16, torch.float16):
        wide = [cast(t) for t in wide]
    return cast(input), wide[0], wide[1], cast(gamma), cast(beta)
