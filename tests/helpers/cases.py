"""Cases, and the rule by which a backend's result is held against plain PyTorch.

The rule: measured against a more exact result, a backend may be at most twice as far off as plain PyTorch is in the
same dtype (and no result is asked to be nearer than the rounding of its own dtype). At the activation's kink a rounding
decides which branch is taken, so where the pre-activation is within rounding of 0 the incoming gradient is 0, for all.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from film_kernels import arguments, conv_film, reference
from film_kernels.problems.conv_film import KEEPS
from tests.helpers import emulation, exact

EXPECTED = ("cpu", "vendor", "reference")  # backends that must be available wherever the tests run
_triton = importlib.util.find_spec("triton")  # optional; a folder of that name is found too
INTERPRETED = ("triton", "vendor_one_pass") if _triton is not None and _triton.origin is not None else ()
# The CUDA kernels' sources run on the CPU, warps in an order that the number seeds. A wheel's tests have no sources.
EMULATED = ("cuda_0", "cuda_1", "cuda_2") if emulation.KERNELS.is_dir() else ()
NAMES = ("output", "grad_input", "grad_weight", "grad_bias", "grad_gamma", "grad_beta")


@dataclass(frozen=True)
class Case:
    name: str
    input: tuple[int, ...]
    weight: tuple[int, ...]
    stride: int | tuple[int, ...] = 1
    padding: int | tuple[int, ...] | str = 0
    dilation: int | tuple[int, ...] = 1
    groups: int = 1
    activation: str = "relu"
    film_position: str = "post"
    negative_slope: float = 0.1
    gamma_offset: float = 0.0
    keep: str = "fast"

    @property
    def geometry(self):
        return self.stride, self.padding, self.dilation, self.groups

    @property
    def options(self):
        return {
            "activation": self.activation,
            "film_position": self.film_position,
            "negative_slope": self.negative_slope,
            "gamma_offset": self.gamma_offset,
            "keep": self.keep,
        }

    def __str__(self):
        return f"{self.name}-{self.activation}-{self.film_position}"


GEOMETRIES = (
    Case("tutorial", (2, 3, 18, 16), (10, 3, 3, 3)),
    Case("wide", (3, 16, 14, 14), (32, 16, 3, 3), padding=1),
    Case("odd_channels_5x5", (2, 5, 9, 11), (7, 5, 5, 5), stride=2, padding=2),
    Case("pointwise", (2, 8, 7, 7), (70, 8, 1, 1)),
    Case("pointwise_strided", (2, 8, 7, 7), (17, 8, 1, 1), stride=2),
    Case("grouped_dilated", (2, 8, 12, 10), (12, 2, 3, 3), padding=2, dilation=2, groups=4),
    Case("depthwise", (2, 6, 10, 10), (6, 1, 3, 3), stride=2, padding=1, groups=6),
    Case("smaller_than_a_vector", (1, 4, 3, 2), (5, 4, 3, 3), stride=3, padding=2),
    Case("mixed", (2, 4, 17, 40), (10, 2, 2, 3), stride=(3, 1), padding=(1, 2), dilation=(2, 1), groups=2),
    Case("same_even_kernel", (2, 3, 8, 9), (6, 3, 4, 2), padding="same"),
    Case("many_products", (1, 80, 9, 11), (33, 80, 3, 3), padding=1),
    Case("one_dimension", (3, 6, 50), (9, 6, 5), padding=4, dilation=2),
    Case("one_position", (4, 3, 3, 3), (1, 3, 3, 3)),
    Case("long_row", (1, 2, 2, 700), (3, 2, 1, 3), padding=(0, 1)),
    Case("scaling", (2, 6, 7, 9), (6, 1, 1, 1), groups=6),
    Case("scaling_1d", (3, 5, 40), (5, 1, 1), groups=5),
    Case("depthwise_wide", (2, 40, 9, 21), (40, 1, 7, 5), padding=(3, 2), groups=40),
    Case("depthwise_1d", (2, 17, 200), (17, 1, 4), stride=2, padding=3, groups=17),
)
FORMULAS = (("relu", "post"), ("relu", "pre"), ("leaky_relu", "post"), ("leaky_relu", "pre"), ("none", "post"))
CASES = tuple(
    replace(
        case, activation=activation, film_position=position, gamma_offset=float(i % 2), keep=KEEPS[(i + j) % len(KEEPS)]
    )
    for i, case in enumerate(GEOMETRIES)
    for j, (activation, position) in enumerate(FORMULAS)
)


def tensors_of(case: Case, dtype: torch.dtype, seed: int = 0, channels_last: bool = False) -> list[Tensor]:
    """(input, weight, bias, gamma, beta) of unit size."""
    generator = torch.Generator().manual_seed(seed)
    n, k = case.input[0], case.weight[0]
    shapes = (case.input, case.weight, (k,), (n, k), (n, k))
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    if channels_last and len(case.input) == 4:
        tensors[:2] = [t.to(memory_format=torch.channels_last) for t in tensors[:2]]
    return tensors


def run(
    case: Case, tensors: list[Tensor | None], grad: Tensor, backend: str, dtype: torch.dtype
) -> list[Tensor | None]:
    """[y, and the gradients of the five tensors] in `dtype`, by `backend`."""
    if backend in ("vendor", "reference") and _meets_a_fault_of_pytorch(case, dtype):
        tensors = [None if t is None else t.contiguous() for t in tensors]
        grad = grad.contiguous()
    leaves = [None if t is None else t.detach().to(dtype).requires_grad_() for t in tensors]
    y = conv_film(*leaves, *case.geometry, **case.options, backend=backend)
    y.backward(grad.to(dtype))
    return [y.detach(), *(None if t is None else t.grad for t in leaves)]


def _meets_a_fault_of_pytorch(case: Case, dtype: torch.dtype) -> bool:
    """PyTorch 2.13's own backward of a 1x1 convolution with a stride, of float32 in channels_last, has been seen to
    write past its memory. It gets such tensors contiguous."""
    return dtype == torch.float32 and set(case.weight[2:]) == {1} and case.stride != 1


def finest(backend: str) -> torch.dtype:
    """The dtype in which results can be told apart best: float64, where `backend` serves it."""
    return torch.float32 if backend == "cuda" else torch.float64


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Equal but for the rounding of sums."""
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if expected.dtype == torch.float32 else {}
    torch.testing.assert_close(found, expected, **tolerance)


@contextlib.contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """PyTorch's setting for float32 convolutions on GPUs: "tf32" or "ieee"."""
    setting = torch.backends.cudnn.conv
    before, setting.fp32_precision = setting.fp32_precision, precision
    try:
        yield
    finally:
        setting.fp32_precision = before


def has_one_pass(problem) -> bool:
    """Stands in for the function of backends/vendor.py where Triton runs in its interpreter."""
    return problem.spatial_rank < 3


def problem_of(case: Case, tensors: list[Tensor | None]):
    options = (case.activation, case.negative_slope, case.film_position, case.gamma_offset, case.keep)
    return arguments.prepare(tuple(tensors), (*case.geometry, *options))[0]


def pre_activation(case: Case, tensors: list[Tensor | None], dtype: torch.dtype) -> Tensor:
    """v, of which the activation is taken, in `dtype`."""
    cast = [None if t is None else t.to(dtype) for t in tensors]
    z = reference.convolution(problem_of(case, cast), *cast[:3])
    return z if case.film_position == "post" else reference.film(z, *cast[3:], case.gamma_offset)


def as_they_are(*tensors: Tensor) -> list[Tensor]:
    """What plain PyTorch makes of the tensors that are multiplied, before it does: nothing."""
    return list(tensors)


def as_tf32(*tensors: Tensor) -> list[Tensor]:
    """float32 with the 10 bits of fraction that a tensor core looks at, to nearest."""
    return [((t.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32).view_as(t) for t in tensors]


Seen = Callable[..., list[Tensor]]


def incoming_gradient(case: Case, tensors: list[Tensor | None], seed: int = 1, seen: Seen = as_they_are) -> Tensor:
    """A random gradient that is 0 where a rounding could move v over the kink."""
    dtype = tensors[0].dtype
    v = pre_activation(case, tensors, torch.float64)
    plain = [*seen(*tensors[:2]), *tensors[2:]]
    rounding = (pre_activation(case, plain, torch.float32 if dtype == torch.float64 else dtype).double() - v).abs()
    generator = torch.Generator().manual_seed(seed)
    grad = torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v.device, dtype)
    grad[v.abs() <= 4 * rounding.max()] = 0
    return grad


def assert_as_good_as_plain(
    case: Case,
    draw: Callable[[int], list[Tensor | None]],
    backend: str,
    channels_last_grad: bool = False,
    place: Callable[[Tensor], Tensor] = lambda t: t,
    draws: int | None = None,
) -> None:
    """Hold `backend` to the rule, output and gradients. `draw(seed)` gives the five tensors, which are brought to a
    device by `place`."""

    def change_grad(grad):
        return grad.to(memory_format=torch.channels_last) if channels_last_grad and grad.dim() == 4 else grad

    def ours(tensors, grad):
        return run(case, tensors, grad, backend, tensors[0].dtype)

    hold_to_the_rule(case, draw, ours, draws or min(48, max(3, 48 // case.weight[0])), change_grad, place=place)


def hold_to_the_rule(
    case: Case,
    draw: Callable[[int], list[Tensor | None]],
    ours: Callable[[list[Tensor | None], Tensor], list[Tensor | None]],
    draws: int,
    change_grad: Callable[[Tensor], Tensor],
    seen: Seen = as_they_are,
    place: Callable[[Tensor], Tensor] = lambda t: t,
) -> None:
    """Hold `ours(tensors, grad)`, [y, and the five gradients], to the rule over several draws together: of a gradient
    with a few elements one draw says little. Plain PyTorch gets what `seen` makes of input, weight and gradient, the
    factors of products, where it would round them on a GPU. `place` brings the tensors to a device."""
    squares = {name: torch.zeros(3, dtype=torch.float64) for name in NAMES}  # of our error, plain's error, the size
    for seed in range(draws):
        tensors = [None if t is None else place(t) for t in draw(seed)]
        dtype = tensors[0].dtype
        grad = change_grad(incoming_gradient(case, tensors, seed, seen))
        plain = run(case, [*seen(*tensors[:2]), *tensors[2:]], *seen(grad), "reference", dtype)
        results = ours(tensors, grad)
        for name, better, theirs, result in zip(NAMES, more_exact(case, tensors, grad), plain, results, strict=True):
            if better is None:
                assert result is None, name
                continue
            assert result.dtype == dtype and result.shape == theirs.shape, name
            # PyTorch 2.13's own bfloat16 weight gradient of a few long rows reads memory that nobody wrote: where it
            # makes NaN of what is finite, it counts as exact.
            theirs = theirs.double().cpu().numpy()
            theirs = np.where(np.isfinite(better) & np.isnan(theirs), better, theirs)
            errors = (result.double().cpu().numpy() - better, theirs - better, better)
            squares[name] += torch.tensor([float((e**2).sum()) for e in errors], dtype=torch.float64)
    for name, (error, allowed, size) in ((name, s.sqrt().tolist()) for name, s in squares.items()):
        floor = torch.finfo(dtype).eps / 2 * size
        assert error <= 2 * max(allowed, floor), (
            f"{name}: {error:.3g} off, plain PyTorch {allowed:.3g}, size {size:.3g}"
        )


def more_exact(case: Case, tensors: list[Tensor | None], grad: Tensor) -> list:
    """Output and gradients in float64, or for float64 in extended precision, as numpy arrays."""
    if tensors[0].dtype != torch.float64:
        return [None if t is None else t.cpu().numpy() for t in run(case, tensors, grad, "reference", torch.float64)]
    value, slope = exact.activation(case.activation, case.negative_slope)
    return list(exact.forward_and_gradients(*tensors, grad, problem_of(case, tensors), value, slope))
