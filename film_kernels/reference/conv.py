"""conv_film in plain PyTorch.

`conv_film` is what everybody writes by hand. `backward` is the same gradients by the one-bit formulas that the
kernels use; it exists to hold those formulas against autograd.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .. import arguments
from ..activations import ACTIVATIONS
from ..problems.conv_film import ConvFilm
from .broadcast import film

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def symmetric(problem: ConvFilm, input: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
    """The input and the padding that the library's convolution takes: it knows only the same padding on both sides."""
    if all(before == after for before, after in problem.padding):
        return input, tuple(before for before, _ in problem.padding)
    sides = [side for pair in reversed(problem.padding) for side in pair]
    return F.pad(input, sides), (0,) * problem.spatial_rank


def convolution(problem: ConvFilm, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None):
    """`z = conv(input, weight) + bias` as `problem` has it, by the library's convolution."""
    if 0 in problem.out_size:  # the library refuses these; an empty result still belongs to the graph
        empty = input.new_zeros(problem.out_shape)
        return empty + sum(t.sum() * 0 for t in (input, weight, bias) if t is not None)
    input, padding = symmetric(problem, input)
    convolve = _CONV[problem.spatial_rank]
    return convolve(input, weight, bias, problem.stride, padding, problem.dilation, problem.groups)


def forward(
    problem: ConvFilm,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    gamma: torch.Tensor | None,
    beta: torch.Tensor | None,
) -> torch.Tensor:
    """`y`, differentiable to any order; arguments already brought to the shapes of the design ((N, K) for FiLM's)."""
    z = convolution(problem, input, weight, bias)
    activation = ACTIVATIONS[problem.activation]
    if problem.film_position == "pre":
        return activation.apply(film(z, gamma, beta, problem.gamma_offset), problem.negative_slope)
    return film(activation.apply(z, problem.negative_slope), gamma, beta, problem.gamma_offset)


def backward(
    problem: ConvFilm,
    grad: torch.Tensor,
    upper: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    gamma: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    """(grad_input, grad_weight, grad_bias, grad_gamma, grad_beta) from the incoming gradient `grad` (N, K, *out)
    and `upper`, the bits as a bool tensor of that shape.

    With `u = grad * slope`, `U[n] = ` the weight gradient of `u[n]`:
    `dgamma = <W, U> + b * sum u`, `dW = sum_n gamma U`, `db = sum_n gamma sum u`, `dx = conv_transpose(gamma * u, W)`.

    Raises ValueError for a smooth activation, of which the bits do not give the slope.
    """
    lower_slope = ACTIVATIONS[problem.activation].lower_slope(problem.negative_slope)
    scale = grad.new_ones(problem.batch, problem.out_channels) if gamma is None else gamma
    scale = scale + problem.gamma_offset
    u = torch.where(upper, grad, grad * lower_slope)
    positions = tuple(range(2, grad.dim()))
    sum_u = u.sum(positions)

    def weight_gradient(n: int) -> torch.Tensor:
        with torch.enable_grad():
            w = weight.detach().requires_grad_()
            one = problem._replace(input_shape=(1, *problem.input_shape[1:]))
            return torch.autograd.grad(convolution(one, input[n : n + 1].detach(), w, None), w, u[n : n + 1])[0]

    per_sample = torch.stack([weight_gradient(n) for n in range(problem.batch)])
    grad_gamma = (weight * per_sample).flatten(2).sum(2)
    if bias is not None:
        grad_gamma = grad_gamma + bias * sum_u
    grad_weight = torch.einsum("nk,nk...->k...", scale, per_sample)
    grad_bias = (scale * sum_u).sum(0)
    with torch.enable_grad():
        x = input.detach().requires_grad_()
        dz = scale.reshape(*scale.shape, *(1,) * len(positions)) * u
        grad_input = torch.autograd.grad(convolution(problem, x, weight.detach(), None), x, dz)[0]
    grad_beta = sum_u if problem.film_position == "pre" else grad.sum(positions)
    return grad_input, grad_weight, grad_bias, grad_gamma, grad_beta


def conv_film(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    gamma: torch.Tensor | None = None,
    beta: torch.Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    *,
    activation: str = "relu",
    negative_slope: float = 0.01,
    film_position: str = "post",
    gamma_offset: float = 0.0,
    keep: str = "fast",
    backend: str | None = None,
) -> torch.Tensor:
    """`film_kernels.conv_film` in plain PyTorch: same arguments, shapes, errors, and differentiable to any order.

    `keep` and `backend` are accepted so that the signatures agree; the latter must be None or "reference".
    """
    if backend not in (None, "reference"):
        raise ValueError(f"backend must be None or 'reference' for the reference formula, got {backend!r}")
    problem, tensors, unbatched = arguments.prepare(
        (input, weight, bias, gamma, beta),
        (stride, padding, dilation, groups, activation, negative_slope, film_position, gamma_offset, keep),
    )
    y = forward(problem, *tensors)
    return y.squeeze(0) if unbatched else y
