"""norm_film in plain PyTorch: the library's normalisation, FiLM by broadcasting, and the activation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import norm_arguments, running
from ..activations import ACTIVATIONS
from ..problems.norm_film import NO_NORM, NormFilm
from .broadcast import film, over_positions


def _affine(problem: NormFilm, input: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        input = input * over_positions(weight, input.dim(), problem.channel_dim)
    return input if bias is None else input + over_positions(bias, input.dim(), problem.channel_dim)


def _over_channels(problem: NormFilm, input: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Normalised over the channels of a position, which the library wants last."""
    if problem.norm == "l2":
        return _affine(problem, F.normalize(input, dim=problem.channel_dim, eps=problem.eps), weight, bias)
    dims = range(1, input.dim())  # `permute`, for PyTorch's older ONNX exporter writes a wrong `movedim`
    first = problem.channel_dim == 1
    last = input.permute(0, *dims[1:], 1) if first else input
    if problem.norm == "rms":
        y = F.rms_norm(last, (problem.channels,), weight, problem.eps)
    else:
        y = F.layer_norm(last, (problem.channels,), weight, bias, problem.eps)
    y = y.permute(0, input.dim() - 1, *dims[:-1]) if first else y
    return _affine(problem, y, None, bias) if problem.norm == "rms" else y


def _group_norm(problem: NormFilm, input: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Not of `functional`, which refuses groups of one element in a batch of one.

    PyTorch 2.13's kernels for channels_last are not used: they lose all digits where the mean is far from 0, end the
    process where weight or bias has a gradient and the input has none, and have no forward-mode derivative."""
    given = None if weight is None else bias  # it cannot be differentiated in a bias without a weight
    x = input.contiguous() if problem.channels_last else input
    y = torch.group_norm(x, problem.num_groups, weight, given, problem.eps)  # type: ignore[arg-type]
    if problem.channels_last and not torch._C._are_functorch_transforms_active():  # whose vmap knows no memory formats
        y = y.contiguous(memory_format=problem.memory_format)
    return y if given is bias else _affine(problem, y, None, bias)


def normalised(problem: NormFilm, input: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """`weight * xhat + bias`, of the input's dtype."""
    if problem.norm == NO_NORM:
        return _affine(problem, input, weight, bias).to(problem.dtype)
    if 0 in problem.input_shape:  # the library refuses some of these; an empty result still belongs to the graph
        return input + sum(t.sum() * 0 for t in (weight, bias) if t is not None)
    mixed = problem.parameter_dtype != problem.dtype  # which the library serves on some devices only
    x = input.to(problem.parameter_dtype) if mixed else input
    if problem.norm == "group":
        y = _group_norm(problem, x, weight, bias)
    elif problem.norm == "batch":
        y = F.batch_norm(x, None, None, weight, bias, True, 0.0, problem.eps)
    else:
        y = _over_channels(problem, x, weight, bias)
    return y.to(problem.dtype) if mixed else y


def forward(
    problem: NormFilm,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
) -> Tensor:
    """`y`, differentiable to any order; gamma and beta as (N, C)."""
    v = normalised(problem, input, weight, bias)
    activation = ACTIVATIONS[problem.activation]
    if problem.film_position == "pre":
        v = film(v, gamma, beta, problem.gamma_offset, problem.channel_dim)
        return activation.apply(v, problem.negative_slope)
    v = activation.apply(v, problem.negative_slope)
    return film(v, gamma, beta, problem.gamma_offset, problem.channel_dim)


def norm_film(
    input: Tensor,
    norm: str = "group",
    num_groups: int | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    eps: float = 1e-5,
    activation: str = "silu",
    negative_slope: float = 0.01,
    film_position: str = "pre",
    gamma_offset: float | Tensor = 0.0,
    channel_dim: int = 1,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    backend: str | None = None,
) -> Tensor:
    """`film_kernels.norm_film` in plain PyTorch: same arguments, shapes, errors, and differentiable to any order.

    `backend` is accepted so that the signatures agree, and must be None or "reference".
    """
    if backend not in (None, "reference"):
        raise ValueError(f"backend must be None or 'reference' for the reference formula, got {backend!r}")
    statistics = running.Statistics(running_mean, running_var, training, momentum)
    problem, tensors = norm_arguments.prepare(
        (input, weight, bias, gamma, beta),
        (norm, num_groups, eps, activation, negative_slope, film_position, gamma_offset, channel_dim),
        statistics,
    )
    y = forward(problem, *tensors)
    if problem.norm == "batch" and statistics.are_kept:
        with torch.no_grad():
            statistics.update(problem, running.statistics_of(problem, tensors[0]))
    return y
