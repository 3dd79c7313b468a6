"""`python -m tests.helpers.untouched`: prints the calls that compute with what nobody has written, a line each.

Kernels work in memory that the last call, or anybody, has left. Where they multiply places of it that hold nothing, no
result is wrong, but subnormal numbers there take a hundred times as long as others. Here memory holds the largest
numbers (MALLOC_PERTURB_=128, bytes of 0x7f), and who multiplies them sets the processor's flag for overflow, which the
numbers of these calls do not. (That for invalid operations is set by what rounds the empty lanes of a vector.)
"""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial

import torch

from film_kernels import conv_film, norm_film

FLAGS = {"subnormal": 2, "overflow": 8}  # bits of the register MXCSR
_REGISTER = 7  # of the words that fegetenv gives
_libm = ctypes.CDLL("libm.so.6")

# Input, weight, padding; with tiles, channels and positions that fill what a kernel works on, and that do not.
CONVOLUTIONS = (
    ((4, 64, 16, 16), (64, 64, 3, 3), 1),
    ((3, 64, 33, 31), (128, 64, 3, 3), 1),
    ((4, 128, 16, 16), (3, 128, 3, 3), 1),
    ((2, 512, 4, 4), (512, 512, 3, 3), 1),
    ((1, 40, 37, 41), (24, 40, 5, 5), 2),
    ((1, 36, 35, 33), (40, 36, 7, 7), 3),
    ((2, 64, 100), (64, 64, 3), 1),
    ((2, 72, 130), (96, 72, 5), 2),
    ((2, 128, 15, 17), (60, 128, 1, 1), 0),
    ((3, 3, 30, 30), (10, 3, 3, 3), 0),
    ((2, 30, 19, 13), (33, 30, 2, 4), 1),
    ((2, 64, 14, 14), (64, 16, 3, 3), 1),
)
NORMS = (
    ((3, 36, 13, 11), "group", 4),
    ((2, 64, 40, 41), "group", 1),
    ((5, 30, 9, 7), "batch", None),
    ((2, 37, 10, 9), "channel", None),
    ((2, 64, 16, 16), "rms", None),
)
DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def flags_of(call: Callable[[], object]) -> list[str]:
    """What `call`, in this thread, has set."""
    environment = (ctypes.c_uint32 * 8)()
    _libm.fegetenv(environment)
    environment[_REGISTER] &= ~0x3F
    _libm.fesetenv(environment)
    call()
    _libm.fegetenv(environment)
    return [name for name, bit in FLAGS.items() if environment[_REGISTER] & bit]


def _drawn(dtype: torch.dtype, last: bool, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    # results of unit size: the exponential function of large ones is subnormal
    tensors = [
        (torch.randn(shape) / math.prod(shape[1:] if len(shape) > 2 else ()) ** 0.5).to(dtype) for shape in shapes
    ]
    if last and tensors[0].dim() == 4:
        tensors[0] = tensors[0].contiguous(memory_format=torch.channels_last)
    return [t.requires_grad_() for t in tensors]


def _steps(layer: Callable[..., torch.Tensor], leaves: list[torch.Tensor]) -> Iterator[tuple[str, list[str]]]:
    def inference() -> None:
        with torch.no_grad():
            layer(*leaves)

    yield "forward", flags_of(inference)
    y = layer(*leaves)
    grad = torch.randn_like(y)
    for wanted in ([0], [1], list(range(len(leaves)))):
        asked = [leaves[i] for i in wanted]
        yield f"gradients {wanted}", flags_of(partial(torch.autograd.grad, y, asked, grad, retain_graph=True))


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the flags are a thread's own
    for dtype, last, activation in itertools.product(DTYPES, (False, True), ("relu", "silu")):
        for input, weight, padding in CONVOLUTIONS:
            rows = (input[0], weight[0])
            leaves = _drawn(dtype, last, input, weight, rows[1:], rows, rows)
            options = {"padding": padding, "groups": input[1] // weight[1], "activation": activation, "backend": "cpu"}
            for step, flags in _steps(lambda *t, options=options: conv_film(*t, **options), leaves):
                if flags:
                    print("conv_film", input, weight, dtype, last, activation, step, flags)
        for input, norm, groups in NORMS:
            leaves = _drawn(dtype, last, input, input[1:2], input[1:2], input[:2], input[:2])
            options = {"num_groups": groups, "activation": activation, "backend": "cpu"}

            def layer(x, *rest, norm=norm, options=options):
                return norm_film(x, norm, options["num_groups"], *rest, activation=options["activation"], backend="cpu")

            for step, flags in _steps(layer, leaves):
                if flags:
                    print("norm_film", input, norm, dtype, last, activation, step, flags)
    print("done")


if __name__ == "__main__":
    main()
