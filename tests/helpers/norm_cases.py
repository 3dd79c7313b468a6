"""Cases of norm_film, and the rule of cases.py for them: at most twice as far from a more exact result as plain PyTorch
is in the same dtype, and no result is asked to be nearer than the rounding of its own dtype."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from film_kernels import norm_arguments, norm_film
from film_kernels.backends import BACKENDS
from film_kernels.problems.norm_film import NormFilm
from film_kernels.running import Statistics
from tests.helpers import exact, norm_exact
from tests.helpers.cases import EMULATED, EXPECTED, INTERPRETED


def _with_kernels(backends: Sequence[str]) -> tuple[str, ...]:
    """Those that have kernels for norm_film. "cuda_0" and so on are `cuda` in the emulator with that seed."""
    serves = lambda name: any(kernels.record is NormFilm for kernels in BACKENDS[name].kernels)  # noqa: E731
    return tuple(name for name in backends if name.split("_")[0] in BACKENDS and serves(name.split("_")[0]))


SERVING = _with_kernels(EXPECTED)  # of those that must be there
SIMULATED = _with_kernels((*(name for name in INTERPRETED if name in BACKENDS), *EMULATED))  # of GPUs' backends
NAMES = ("output", "grad_input", "grad_weight", "grad_bias", "grad_gamma", "grad_beta")
Some = Sequence[Tensor | None]
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda v: v,
    "relu": F.relu,
    "leaky_relu": lambda v: F.leaky_relu(v, 0.1),
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "mish": F.mish,
    "elu": F.elu,
}


@dataclass(frozen=True)
class Case:
    """One call. `input` is as the user has it, channels last with `channel_dim=-1`."""

    input: tuple[int, ...]
    norm: str = "group"
    num_groups: int | None = None
    activation: str = "silu"
    film_position: str = "pre"
    gamma_offset: float = 0.0
    eps: float = 1e-5
    channel_dim: int = 1
    layout: str = "contiguous"  # of the input, one of LAYOUTS
    grad_layout: str = "contiguous"
    factors: str = "rows"  # shapes of gamma and beta, one of FACTORS
    absent: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float64
    parameter_dtype: torch.dtype | None = None  # of weight and bias, where it is another

    @property
    def channels(self) -> int:
        return self.input[self.channel_dim]

    @property
    def options(self) -> dict[str, Any]:
        return {
            "eps": self.eps, "activation": self.activation, "negative_slope": 0.1, "film_position": self.film_position,
            "gamma_offset": self.gamma_offset, "channel_dim": self.channel_dim,
        }  # fmt: skip

    def __str__(self):
        groups = "" if self.num_groups is None else self.num_groups
        kind = f"{self.dtype}".removeprefix("torch.") + ("_mixed" if self.parameter_dtype else "")
        words = (
            "x".join(map(str, self.input)), f"{self.norm}{groups}", f"dim{self.channel_dim}", self.layout,
            f"grad_{self.grad_layout}", self.activation, self.film_position, f"plus{self.gamma_offset:g}", self.factors,
            "without_" + "_".join(self.absent) if self.absent else "whole", kind,
        )  # fmt: skip
        return "-".join(words)


def _permuted(x: Tensor, order: Sequence[int]) -> Tensor:
    return x.permute(*order).contiguous().permute([list(order).index(d) for d in range(x.dim())])


def _inside(x: Tensor, grow: Mapping[int, int]) -> Tensor:
    """The same values as a slice of a larger tensor, from 1 on in the dimensions of `grow`."""
    sizes = [size + grow.get(d, 0) for d, size in enumerate(x.shape)]
    whole = torch.full(sizes, float("nan"), dtype=x.dtype)  # which nothing may read
    view = whole[tuple(slice(1, 1 + size) if d in grow else slice(None) for d, size in enumerate(x.shape))]
    return view.copy_(x)


def _spaced(x: Tensor, dim: int) -> Tensor:
    whole = torch.full([2 * size if d == dim % x.dim() else size for d, size in enumerate(x.shape)], float("nan"))
    view = whole.to(x.dtype)[tuple(slice(None, None, 2) if d == dim % x.dim() else slice(None) for d in range(x.dim()))]
    return view.copy_(x)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_innermost": lambda x: _permuted(x, (0, *range(2, x.dim()), 1)),
    "some_channels": lambda x: _inside(x, {1: 3}),
    "some_innermost_channels": lambda x: _inside(x.movedim(1, -1), {x.dim() - 1: 3}).movedim(-1, 1),
    "some_samples": lambda x: _inside(x, {0: 2}),
    "every_second_sample": lambda x: _spaced(x, 0),
    "every_second_column": lambda x: _spaced(x, -1),
    "transposed": lambda x: _permuted(x, (*range(x.dim() - 2), x.dim() - 1, x.dim() - 2)),
    "turned": lambda x: _permuted(x, range(x.dim() - 1, -1, -1)),
    "offset": lambda x: torch.cat([x.new_zeros(3), x.flatten()])[3:].view(x.shape),
    "expanded": lambda x: x[:1].expand(x.shape),
}


FACTORS: dict[str, Callable[[int, int, tuple[int, ...], int], tuple[int, ...]]] = {
    "rows": lambda n, c, ones, dim: (n, c),
    "chunks": lambda n, c, ones, dim: (n, c),  # halves of one tensor, as a generator makes them
    "one_row": lambda n, c, ones, dim: (1, c),
    "vector": lambda n, c, ones, dim: (c,),
    "with_ones": lambda n, c, ones, dim: (n, c, *ones) if dim == 1 else (n, *ones, c),
    "vector_with_ones": lambda n, c, ones, dim: (c, *ones) if dim == 1 else (*ones, c),
}


def tensors_of(case: Case, seed: int = 0) -> list[Tensor | None]:
    """(input, weight, bias, gamma, beta) of unit size in the layouts of the case."""
    generator = torch.Generator().manual_seed(seed)
    n, c, ones = case.input[0], case.channels, (1,) * (len(case.input) - 2)
    factor = FACTORS[case.factors](n, c, ones, case.channel_dim)
    parameter = case.parameter_dtype or case.dtype
    draw = lambda shape, dtype: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    x = LAYOUTS[case.layout]((draw(case.input, torch.float64) + 0.5).to(case.dtype))
    w, b = draw((c,), parameter), draw((c,), parameter)
    gamma, beta = draw(factor, case.dtype), draw(factor, case.dtype)
    if case.factors == "chunks":
        gamma, beta = torch.cat([gamma, beta], 1).chunk(2, 1)
    given = dict(zip(("weight", "bias", "gamma", "beta"), (w, b, gamma, beta), strict=True))
    return [x, *(None if name in case.absent else t for name, t in given.items())]


def problem_of(case: Case, tensors: Some) -> NormFilm:
    options = (case.norm, case.num_groups, case.eps, case.activation, 0.1, case.film_position, case.gamma_offset)
    given = (tuple(tensors), (*options, case.channel_dim), Statistics(None, None, True, 0.1))
    return norm_arguments.prepare(*given)[0]  # type: ignore[arg-type]


def ours(case: Case, tensors: Some, backend: str | None = None, **changed: Any) -> Tensor:
    x, *others = tensors
    return norm_film(x, case.norm, case.num_groups, *others, **{**case.options, **changed}, backend=backend)


def _rows(factor: Tensor, rank: int, channels: int, channel_dim: int) -> Tensor:
    """A gamma, beta, weight or bias as it broadcasts."""
    rows, ones = factor.reshape(-1, channels), (1,) * (rank - 2)
    return rows.reshape(-1, channels, *ones) if channel_dim == 1 else rows.reshape(-1, *ones, channels)


def normalised(case: Case, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """`weight * xhat + bias` as everybody writes it."""
    dtype, dim, size = x.dtype, case.channel_dim, (case.channels,)
    if weight is not None or bias is not None:
        x = x.to((bias if weight is None else weight).dtype)
    if case.norm == "group":
        # PyTorch 2.13 cannot differentiate group_norm with a bias and without a weight.
        z = torch.group_norm(x, case.num_groups, weight, bias if weight is not None else None, case.eps)
        z = z + _rows(bias, x.dim(), case.channels, dim) if weight is None and bias is not None else z
    elif case.norm == "batch":
        z = F.batch_norm(x, None, None, weight, bias, True, 0.0, case.eps)
    elif case.norm == "channel":
        z = F.layer_norm(x.movedim(dim, -1), size, weight, bias, case.eps).movedim(-1, dim)
    else:
        rms = case.norm == "rms"
        z = (
            F.rms_norm(x.movedim(dim, -1), size, weight, case.eps).movedim(-1, dim)
            if rms
            else F.normalize(x, dim=dim, eps=case.eps)
        )
        if weight is not None and not rms:
            z = z * _rows(weight, x.dim(), case.channels, dim)
        if bias is not None:
            z = z + _rows(bias, x.dim(), case.channels, dim)
    return z.to(dtype)


def _filmed(case: Case, z: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    rows = lambda factor: _rows(factor, z.dim(), case.channels, case.channel_dim)  # noqa: E731
    if gamma is not None:
        z = z * rows(gamma + case.gamma_offset if case.gamma_offset else gamma)
    elif case.gamma_offset:
        z = z * (1 + case.gamma_offset)
    return z if beta is None else z + rows(beta)


def pre_activation(case: Case, tensors: Some) -> Tensor:
    """v, of which the activation is taken."""
    x, w, b, gamma, beta = tensors
    z = normalised(case, x, w, b)  # type: ignore[arg-type]
    return _filmed(case, z, gamma, beta) if case.film_position == "pre" else z


def plain(case: Case, tensors: Some) -> Tensor:
    """y in plain PyTorch, differentiable."""
    y = FUNCTIONS[case.activation](pre_activation(case, tensors))
    return y if case.film_position == "pre" else _filmed(case, y, *tensors[3:])


Call = Callable[[Some], Tensor]


def gradients(call: Call, tensors: Some, grad: Tensor, dtype: torch.dtype | None = None) -> list[Tensor | None]:
    """[y, and the gradients of the five tensors], None for what is not given; all cast to `dtype` before, if given."""
    leaves = [None if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]
    y = call(leaves)
    y.backward(grad.to(y.dtype))
    return [y.detach(), *(None if t is None else t.grad for t in leaves)]


def wide(tensors: Some) -> list[Tensor | None]:
    return [None if t is None else t.double() for t in tensors]


def incoming_gradient(case: Case, tensors: Some, seed: int = 1) -> Tensor:
    """A random gradient that is 0 where a rounding could move v over relu's kink."""
    generator = torch.Generator().manual_seed(seed)
    grad = torch.randn(case.input, generator=generator, dtype=torch.float64)
    if case.grad_layout == "expanded":
        grad = grad.flatten()[:1].view([1] * grad.dim())
        return grad.to(case.dtype).expand(case.input)
    if case.activation in ("relu", "leaky_relu"):
        v, dtype = pre_activation(case, wide(tensors)), case.dtype
        rough = torch.float32 if dtype == torch.float64 else dtype
        again = pre_activation(
            case, tensors if rough == dtype else [None if t is None else t.to(rough) for t in tensors]
        )
        grad[v.abs() <= 4 * (again.double() - v).abs().max()] = 0
    return LAYOUTS[case.grad_layout](grad.to(case.dtype))


def more_exact(case: Case, tensors: Some, grad: Tensor) -> list[np.ndarray | None]:
    """Output and gradients in float64, or for float64 in extended precision."""
    if case.dtype != torch.float64:
        found = gradients(lambda leaves: plain(case, leaves), tensors, grad, torch.float64)
        return [None if t is None else t.numpy() for t in found]
    rows = (case.input[0], case.channels)
    alone = [None if t is None else t.reshape(-1, rows[1]).expand(rows) for t in tensors[3:]]
    value, slope = exact.activation(case.activation, 0.1)
    found = norm_exact.forward_and_gradients(case, (*tensors[:3], *alone), grad, value, slope)
    return [*found[:4], *(_summed(found[at], tensors[at - 1]) for at in (4, 5))]


def _summed(gradient: np.ndarray | None, factor: Tensor | None) -> np.ndarray | None:
    """The gradient of (N, C) as that of a factor which may have been expanded to it."""
    if gradient is None or factor is None:
        return None
    return (gradient if factor.numel() == gradient.size else gradient.sum(0)).reshape(tuple(factor.shape))


def assert_served(backend: str, case: Case, tensors: Some) -> None:
    reason = BACKENDS[backend].why_not(problem_of(case, tensors))
    assert reason is None, f"{backend} refuses {case}: {reason}"


def assert_as_good_as_plain(
    case: Case,
    backend: str,
    draw: Callable[[int], Some] | None = None,
    draws: int | None = None,
    change: Callable[[Tensor], Tensor] = lambda grad: grad,
    place: Callable[[Tensor], Tensor] = lambda t: t,
) -> dict[str, tuple[float, float, float]]:
    """Hold `backend` to the rule, output and gradients, over several draws together: of a gradient with a few elements
    one draw says little. Where plain PyTorch's own result is not finite, any is as good. `place` brings the tensors of
    both to a device. Returns for each name its error, plain's, and the size."""
    draw = draw or (lambda seed: tensors_of(case, seed))
    squares = {name: np.zeros(3) for name in NAMES}
    eps = {}
    for seed in range(draws or min(16, max(3, 4096 // max(1, int(np.prod(case.input))), 48 // case.channels))):
        tensors = draw(seed)
        placed = [None if t is None else place(t) for t in tensors]
        if seed == 0:
            assert_served(backend, case, placed)
        grad = change(incoming_gradient(case, tensors, seed))
        theirs = gradients(lambda leaves: plain(case, leaves), placed, place(grad))
        found = gradients(lambda leaves: ours(case, leaves, backend), placed, place(grad))
        for name, better, rough, result in zip(NAMES, more_exact(case, tensors, grad), theirs, found, strict=True):
            if better is None:
                assert result is None, name
                continue
            assert rough is not None and result is not None, name
            assert result.dtype == rough.dtype and result.shape == rough.shape, name
            eps[name] = torch.finfo(result.dtype).eps
            rough, result = rough.double().cpu().numpy(), result.double().cpu().numpy()
            usable = np.isfinite(rough) & np.isfinite(better)
            errors = (np.where(usable, e, 0) for e in (result - better, rough - better, better))
            squares[name] += [float((e**2).sum()) for e in errors]
    found = {name: tuple(np.sqrt(squares[name])) for name in eps}
    for name, (error, allowed, size) in found.items():
        floor = eps[name] / 2 * size
        assert error <= 2 * max(allowed, floor), f"{name}: {error:.3g} off, plain {allowed:.3g}, size {size:.3g}"
    return found
