"""`python -m bench.errors`: how far off the kernels are, against plain PyTorch's own error, by path and kind of draw.

A result may be at most twice as far from an exact one as plain PyTorch's in the same dtype (and need not be nearer than
its dtype's rounding). Which kernel or tile serves depends on the layer, and how many digits it keeps on what it is
given; so every path is tried with every kind of draw. Exits with 1 if a ratio is above 2.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import conv_layers, norm_layers
from .draws import Kind, draw
from .layer import TENSORS, Layer, Some

RESULTS = ("output", *(f"grad_{name}" for name in TENSORS))
MOST = 2.0  # of plain PyTorch's error
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MORE_DRAWS = 3  # times as many where errors are rare
_DRAWS_AGAIN = 10  # times as many


class Tried(NamedTuple):
    """What is tried of an operator: each layer with each kind of draw."""

    layers: Sequence[Layer]
    kinds: Mapping[str, Kind]


OPERATORS = {
    "conv_film": Tried(conv_layers.LAYERS, conv_layers.KINDS),
    "norm_film": Tried(norm_layers.LAYERS, norm_layers.KINDS),
}


def measure(layer: Layer, kind: Kind, dtype: torch.dtype = torch.float32, seed: int = 0, draws: int = 4,
            backend: str = "cpu") -> dict[str, float]:  # fmt: skip
    """The ratio of errors of each result, over `draws` draws together (more of them where errors are rare): the roots
    of the sums of all squared errors, ours divided by plain PyTorch's or by the rounding of the result in `dtype`.

    Where one is above the most that is allowed, all are measured once more over many draws, and these count: a gradient
    of a few channels, or one that a few elements make, is by chance several times as far off as another."""
    first, count = 1000 * seed, draws * (_MORE_DRAWS if kind.rare else 1)
    ratios = _ratios(layer, kind, dtype, backend, range(first, first + count))
    if max(ratios.values()) <= MOST:
        return ratios
    return _ratios(layer, kind, dtype, backend, range(first + count, first + (1 + _DRAWS_AGAIN) * count))


def _ratios(layer: Layer, kind: Kind, dtype: torch.dtype, backend: str, seeds: Iterable[int]) -> dict[str, float]:
    """Over one draw for each seed."""
    squares: dict[str, Tensor] = {}  # of our error, plain's error, the size
    for seed in seeds:
        tensors, grad = drawn(layer, kind, dtype, seed)
        exact = gradients(layer.plain, tensors, grad, torch.float64)
        plain = gradients(layer.plain, tensors, grad)
        ours = gradients(lambda given: layer.ours(given, backend), tensors, grad)
        for name, better in exact.items():
            squares[name] = squares.get(name, 0) + _squares(ours[name], plain[name], better)
    rounding = torch.finfo(dtype).eps / 2
    ratios = {}
    for name, (error, allowed, size) in ((name, s.sqrt().tolist()) for name, s in squares.items()):
        allowed = max(allowed, rounding * size)
        if not math.isfinite(error):
            ratios[name] = math.inf
        elif error > 0:
            ratios[name] = error / allowed if allowed > 0 else math.inf
        else:
            ratios[name] = 0.0
    return ratios


def _squares(ours: Tensor, plain: Tensor, exact: Tensor) -> Tensor:
    """Sums of the squares of our error, plain's and the size. Where plain PyTorch is not finite, or the result is too
    large for its 16 bits, anything is as good."""
    usable = plain.isfinite() & exact.to(plain.dtype).isfinite()
    parts = (ours.double() - exact, plain.double() - exact, exact)
    return torch.stack([part.where(usable, 0).square().sum() for part in parts])


def drawn(layer: Layer, kind: Kind, dtype: torch.dtype, seed: int) -> tuple[list[Tensor | None], Tensor]:
    """The five tensors and a gradient, 0 where a rounding decides which side of the activation's kink is taken."""
    generator = torch.Generator().manual_seed(seed)
    tensors = layer.given([t.to(dtype) for t in draw(kind, layer, generator)])
    output = layer.planes(layer.plain(_cast(tensors, torch.float64)))
    grad = kind.gradient(output, generator)
    return tensors, layer.arranged(grad.masked_fill(layer.planes(layer.near_kink(tensors)), 0).to(dtype))


def gradients(
    call: Callable[[Some], Tensor], tensors: Some, grad: Tensor, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The output and the gradients of those of the tensors that there are, which are cast to `dtype` before."""
    dtype = dtype or grad.dtype
    leaves = [None if t is None else t.detach().to(dtype).requires_grad_() for t in tensors]
    named = {name: t for name, t in zip(RESULTS[1:], leaves, strict=True) if t is not None}
    output = call(leaves)
    found = torch.autograd.grad(output, list(named.values()), grad.to(dtype))
    return {RESULTS[0]: output.detach(), **dict(zip(named, found, strict=True))}


def _cast(tensors: Some, dtype: torch.dtype) -> list[Tensor | None]:
    return [None if t is None else t.to(dtype) for t in tensors]


def lines(tried: Tried, **options) -> Iterator[tuple[str, float]]:
    """A line of text for each layer and kind, and its largest ratio."""
    for layer in tried.layers:
        for name, kind in tried.kinds.items():
            ratios = measure(layer, kind, **options)
            marks = " ".join(_in_words(ratios.get(result)) for result in RESULTS)
            yield f"{layer.name:30}{name:24}{marks}".rstrip(), max(ratios.values())


def _in_words(ratio: float | None) -> str:
    return 12 * " " if ratio is None else f"{ratio:11.2f}{'*' if ratio > MOST else ' '}"


def _chosen(tried: Tried, layers: str, kinds: str) -> Tried:
    """What has one of these parts in its name."""

    def has(name: str, parts: str) -> bool:
        return any(part.strip() in name for part in parts.split(";"))

    return Tried(
        [layer for layer in tried.layers if has(layer.name, layers)],
        {name: kind for name, kind in tried.kinds.items() if has(name, kinds)},
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.errors", description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", choices=OPERATORS, help="one operator (default: each)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=4, help="of each layer and kind (default: %(default)s)")
    parser.add_argument("--layers", default="", help="names or parts of names, separated by ';' (default: all)")
    parser.add_argument("--kinds", default="", help="the same")
    parser.add_argument("--backend", default="cpu")
    options = parser.parse_args(argv)
    operators = [options.only] if options.only else OPERATORS
    tried = {name: _chosen(OPERATORS[name], options.layers, options.kinds) for name in operators}
    if not any(one.layers and one.kinds for one in tried.values()):
        parser.error("no layer or no kind has such a name")
    torch.set_num_threads(1)  # the layers are too small to share out
    worst = 0.0
    for name, one in tried.items():
        begin, worst_here = time.monotonic(), 0.0
        print(f"{name:54}{' '.join(f'{result:>11} ' for result in RESULTS)}".rstrip())
        rows = lines(one, dtype=DTYPES[options.dtype], seed=options.seed, draws=options.draws, backend=options.backend)
        for text, ratio in rows:
            print(text, flush=True)
            worst_here = max(worst_here, ratio)
        print(f"The largest ratio of {len(one.layers) * len(one.kinds)} rows is {worst_here:.2f}; {MOST:g} is allowed. "
              f"{time.monotonic() - begin:.0f} s.")  # fmt: skip
        worst = max(worst, worst_here)
    return int(worst > MOST)


if __name__ == "__main__":
    sys.exit(main())
