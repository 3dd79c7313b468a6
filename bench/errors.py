"""`python -m bench.errors`: how far off the kernels are, against plain PyTorch's own error, by path and kind of draw.

A result may be at most twice as far from an exact one as plain PyTorch's in the same dtype (and need not be nearer than
its dtype's rounding). Which kernel or tile serves depends on the layer, and how many digits it keeps on what it is
given; so every path is tried with every kind of bench/draws.py. Exits with 1 if a ratio is above 2.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from film_kernels import conv_film, reference

from .draws import KINDS, draw

RESULTS = ("output", "grad_input", "grad_weight", "grad_bias", "grad_gamma", "grad_beta")
MOST = 2.0  # of plain PyTorch's error
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MORE_DRAWS = 3  # times as many where errors are rare


@dataclass(frozen=True)
class Layer:
    """One layer, convolution, activation and FiLM, small enough to be tried often; named after the path it takes."""

    name: str
    input: tuple[int, ...]
    weight: tuple[int, ...]
    padding: int | tuple[int, ...] = 0
    stride: int = 1
    groups: int = 1
    activation: str = "relu"
    film_position: str = "post"


LAYERS = (
    Layer("planes", (4, 3, 20, 24), (10, 3, 3, 3), 1),
    Layer("planes, stride 2, pre", (2, 3, 33, 32), (16, 3, 5, 5), 2, 2, film_position="pre"),
    Layer("planes of groups", (2, 12, 20, 20), (12, 4, 3, 3), 1, groups=3),
    Layer("1x1", (4, 64, 14, 14), (64, 64, 1, 1), activation="leaky_relu"),
    Layer("1x1 of few channels", (2, 8, 16, 16), (24, 8, 1, 1)),
    Layer("direct, stride 2", (2, 32, 17, 17), (32, 32, 3, 3), 1, 2),
    Layer("direct, groups", (2, 48, 17, 18), (48, 24, 3, 3), 1, 2, groups=2, film_position="pre"),
    Layer("direct, 1d", (2, 32, 200), (32, 32, 13), activation="none"),
    Layer("direct, blocks of input", (2, 450, 6, 6), (24, 450, 1, 1)),
    Layer("3x3 small", (2, 16, 16, 16), (16, 16, 3, 3), 1),
    Layer("3x3 small, linear", (2, 20, 15, 18), (24, 20, 3, 3), 1, activation="none"),
    Layer("3x3 one sample, pre", (1, 32, 20, 20), (32, 32, 3, 3), 1, film_position="pre"),
    Layer("3x3 groups", (2, 32, 18, 20), (32, 16, 3, 3), 1, groups=2),
    Layer("3x3 large", (3, 36, 28, 28), (36, 36, 3, 3), 1),
    Layer("3x3 large, leaky", (2, 40, 24, 36), (32, 40, 3, 3), 1, activation="leaky_relu"),
    Layer("1x3", (2, 64, 100), (64, 64, 3), 1),
    Layer("1x5", (2, 65, 100), (64, 65, 5), 2),
    Layer("3x5", (2, 33, 24, 25), (32, 33, 3, 5), (1, 2)),
    Layer("5x3", (2, 24, 12, 18), (24, 24, 5, 3), (2, 1)),
    Layer("5x5", (2, 24, 16, 16), (24, 24, 5, 5), 2),
    Layer("5x5 of few channels", (2, 12, 16, 16), (12, 12, 5, 5), 2, activation="leaky_relu"),
    Layer("5x5 padded otherwise", (2, 16, 16, 18), (16, 16, 5, 5), 1),
    Layer("7x7", (2, 16, 18, 18), (16, 16, 7, 7), 3),
    Layer("7x7 of few positions", (2, 24, 14, 14), (12, 24, 7, 7), 3),
)


def measure(layer: Layer, kind: str, dtype: torch.dtype = torch.float32, seed: int = 0, draws: int = 4,
            backend: str = "cpu") -> dict[str, float]:  # fmt: skip
    """The ratio of errors of each result, over `draws` draws together (more of them where errors are rare): the roots
    of the sums of all squared errors, ours divided by plain PyTorch's or by the rounding of the result in `dtype`."""
    squares = {name: torch.zeros(3, dtype=torch.float64) for name in RESULTS}  # of our error, plain's error, the size
    for number in range(draws * (_MORE_DRAWS if KINDS[kind].rare else 1)):
        tensors, grad = drawn(layer, kind, dtype, 1000 * seed + number)
        exact = _results(reference.conv_film, layer, tensors, grad, torch.float64)
        plain = _results(reference.conv_film, layer, tensors, grad, dtype)
        ours = _results(functools.partial(conv_film, backend=backend), layer, tensors, grad, dtype)
        for name, better, theirs, found in zip(RESULTS, exact, plain, ours, strict=True):
            errors = (found.double() - better, theirs.double() - better, better)
            squares[name] += torch.stack([(e**2).sum() for e in errors])
    rounding = torch.finfo(dtype).eps / 2
    ratios = {}
    for name, (error, allowed, size) in ((name, s.sqrt().tolist()) for name, s in squares.items()):
        if not math.isfinite(error):
            ratios[name] = math.inf
        else:
            ratios[name] = error / max(allowed, rounding * size) if error > 0 else 0.0
    return ratios


def drawn(layer: Layer, kind: str, dtype: torch.dtype, seed: int) -> tuple[list[Tensor], Tensor]:
    """The five tensors and a gradient, 0 where a rounding decides which side of the activation's kink is taken."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [t.to(dtype) for t in draw(kind, layer, generator)]
    output, near_kink = _exact_output(layer, tensors)
    grad = KINDS[kind].gradient(output, generator)
    return tensors, grad.masked_fill(near_kink, 0).to(dtype)


def _exact_output(layer: Layer, tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
    """In float64, and where what the activation is taken of is as near to 0 as roundings in its neighbourhood are
    large: transforms of tiles carry them so far."""
    exact = [t.double() for t in tensors]
    convolve = (F.conv1d, F.conv2d)[exact[0].dim() - 3]

    def before(input: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        z = convolve(input, weight, bias, layer.stride, layer.padding, 1, layer.groups)
        each = (..., *[None] * (z.dim() - 2))
        return z if layer.film_position == "post" else gamma[each] * z + beta[each]

    size = before(*(t.abs() for t in exact))
    windows = [9 if length > 8 else 1 for length in size.shape[2:]]
    pool = (F.max_pool1d, F.max_pool2d)[size.dim() - 3]
    size = pool(size, windows, 1, [length // 2 for length in windows])
    plain: Callable[..., Tensor] = reference.conv_film
    output = plain(*exact, **options_of(layer))
    return output, before(*exact).abs() <= 2 * torch.finfo(tensors[0].dtype).eps * size


def options_of(layer: Layer) -> dict[str, Any]:
    """What conv_film takes beside tensors."""
    return {
        "stride": layer.stride,
        "padding": layer.padding,
        "groups": layer.groups,
        "activation": layer.activation,
        "film_position": layer.film_position,
    }


def _results(
    call: Callable[..., Tensor], layer: Layer, tensors: list[Tensor], grad: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    leaves = [t.to(dtype).requires_grad_() for t in tensors]
    output = call(*leaves, **options_of(layer))
    return [output.detach(), *torch.autograd.grad(output, leaves, grad.to(dtype))]


def lines(layers: Sequence[Layer], kinds: Sequence[str], **options) -> Iterator[tuple[str, float]]:
    """A line of text for each layer and kind, and its largest ratio."""
    for layer in layers:
        for kind in kinds:
            ratios = measure(layer, kind, **options)
            worst = max(ratios.values())
            marks = " ".join(f"{ratio:11.2f}{'*' if ratio > MOST else ' '}" for ratio in ratios.values())
            yield f"{layer.name:26}{kind:24}{marks}", worst


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.errors", description=__doc__.split("\n\n")[0])
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=4, help="of each layer and kind (default: %(default)s)")
    parser.add_argument("--layers", default="", help="names or parts of names, separated by ';' (default: all)")
    parser.add_argument("--kinds", default="", help="the same")
    parser.add_argument("--backend", default="cpu")
    options = parser.parse_args(argv)

    def chosen(name: str, parts: str) -> bool:
        return any(part.strip() in name for part in parts.split(";"))

    layers = [layer for layer in LAYERS if chosen(layer.name, options.layers)]
    kinds = [kind for kind in KINDS if chosen(kind, options.kinds)]
    if not layers or not kinds:
        parser.error("no layer or no kind has such a name")
    torch.set_num_threads(1)  # the layers are too small to share out
    begin, worst = time.monotonic(), 0.0
    print(f"{'path':26}{'kind':24}{' '.join(f'{name:>11} ' for name in RESULTS)}")
    rows = lines(
        layers, kinds, dtype=DTYPES[options.dtype], seed=options.seed, draws=options.draws, backend=options.backend
    )
    for text, ratio in rows:
        print(text, flush=True)
        worst = max(worst, ratio)
    print(f"The largest of {len(layers) * len(kinds)} x {len(RESULTS)} ratios is {worst:.2f}; {MOST:g} is allowed. "
          f"{time.monotonic() - begin:.0f} s.")  # fmt: skip
    return int(worst > MOST)


if __name__ == "__main__":
    sys.exit(main())
