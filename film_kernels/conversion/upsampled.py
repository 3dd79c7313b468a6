"""A convolution of what was enlarged to twice its size, each position repeated, as U-Nets do on their way up.

A kernel of 3 taps reads two positions of the smaller map, one of them twice. So the larger map is four smaller ones, of
its even and odd rows and columns, and each of them is a convolution of the smaller map by a kernel of 2 x 2, whose taps
are sums of the other's: 16 products in place of 36, and the larger map is not made.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from ..backends import BACKENDS
from ..backends.cpu import CpuConvFilm
from ..functional import conv_film
from ..ops import is_watched
from ..packed import conv_film_packed, remembered
from .effects import changed_by, may_share_memory
from .gain import convolution_alone, has_little
from .nodes import arguments_of, tensor_of
from .swap import OURS

_INTERPOLATE = ("input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")


def fold_upsampling(module: fx.GraphModule) -> None:
    """Change the graph of `module`, in which sites have been swapped, in place, where the kernels are faster so."""
    changed = False
    for node in module.graph.nodes:
        if node.target not in (conv_film, conv_film_packed) or node.args:
            continue
        options = dict(node.kwargs)
        larger = options.pop("input")
        smaller = _enlarged_by(larger)
        if smaller is None or _is_changed_between(smaller, larger, node) or not _is_faster(node, smaller):
            continue
        names = ("weight", "bias", "activation", "negative_slope", "keep")
        kept = {name: options[name] for name in names if name in options}
        with module.graph.inserting_before(node):
            call = module.graph.call_function(
                conv_of_upsampled, (smaller,), {**kept, "packs": node.target is conv_film_packed}
            )
        call.meta.update(node.meta)
        node.replace_all_uses_with(call)
        module.graph.erase_node(node)
        module.graph.erase_node(larger)
        changed = True
    if changed:
        module.recompile()


def _enlarged_by(node: Any) -> fx.Node | None:
    """What `node` doubles in all directions, for nobody but one reader; None where it does something else."""
    if not isinstance(node, fx.Node) or node.target is not F.interpolate or len(node.users) != 1:
        return None
    given = arguments_of(node, _INTERPOLATE)
    source = given["input"]
    before, after = tensor_of(source), tensor_of(node)
    if before is None or after is None or given.get("mode", "nearest") not in ("nearest", "nearest-exact"):
        return None
    sizes = [*before.shape, *after.shape]
    factor = given.get("scale_factor")
    factors = factor if isinstance(factor, (tuple, list)) else (factor,)
    doubles = all(isinstance(size, int) for size in sizes) and all(one in (None, 2) for one in factors)
    doubles = doubles and tuple(after.shape[2:]) == tuple(2 * size for size in before.shape[2:])
    return source if doubles and not given.get("antialias") else None


def _is_changed_between(value: fx.Node, begin: fx.Node, end: fx.Node) -> bool:
    """Whether something may write into `value` behind `begin` and before `end`."""
    node = begin.next
    while node is not end:
        changed = [] if node.target in OURS else changed_by(node)
        if changed is None or any(may_share_memory(value, one) for one in changed):
            return True
        node = node.next
    return False


def _is_faster(node: fx.Node, smaller: fx.Node) -> bool:
    """Whether the convolution `node` is one of 3 taps in each direction, and the kernels serve the sum for the four
    small maps faster than PyTorch's own serves it."""
    options, cpu = node.kwargs, BACKENDS["cpu"]
    input, weight, result = (tensor_of(value) for value in (smaller, options["weight"], node))
    if input is None or weight is None or result is None or input.device.type != "cpu" or cpu.unavailable() is not None:
        return False
    rank = weight.dim() - 2
    if {input.dtype, weight.dtype, result.dtype} != {torch.float32} or rank not in (1, 2) or input.dim() != rank + 2:
        return False
    if any(options.get(name) is not None for name in ("gamma", "beta")) or options.get("gamma_offset", 0.0) != 0.0:
        return False
    asked = [*zip(("stride", "padding", "dilation"), (1, 1, 1), strict=True), ("groups", 1)]
    if any(not _is_everywhere(options.get(name, 0 if name == "padding" else 1), value) for name, value in asked):
        return False
    if tuple(weight.shape[2:]) != (3,) * rank:
        return False
    parts = weight.new_empty(weight.shape[0] * 2**rank, weight.shape[1], *(2,) * rank)
    problem = convolution_alone(input, parts, input.dtype, (1, 1, 1, 1))
    kernels = cpu.of(problem)
    assert isinstance(kernels, CpuConvFilm)
    recorded = torch.is_grad_enabled() and result.requires_grad
    use = "alone packed" if node.target is conv_film_packed else "alone"
    if kernels.why_not(problem) is not None or kernels.is_slow(problem, use):
        return False
    return not (recorded and has_little(problem))


def _is_everywhere(option: Any, value: int) -> bool:
    """Whether `option`, a number or one for each dimension, is `value`."""
    if option == "same":
        return value == 1
    return all(one == value for one in option) if isinstance(option, (tuple, list)) else option == value


def conv_of_upsampled(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *, packs: bool, **options: Any
) -> Tensor:
    """`conv_film(F.interpolate(input, scale_factor=2), weight, bias, padding=1, **options)`, from a weight that is
    packed once where it `packs`."""
    count = 2 ** (weight.dim() - 2)
    if torch._C._is_any_autocast_enabled() or is_watched((input, weight, bias)):
        call = conv_film_packed if packs else conv_film
        return call(F.interpolate(input, scale_factor=2.0), weight, bias, padding=1, **options)
    if packs:
        weight, bias = _parts_once(weight, bias, count)
        maps = conv_film_packed(input, weight, bias, padding=1, **options)
    else:
        maps = conv_film(input, _parts(weight), None if bias is None else bias.repeat(count), padding=1, **options)
    return _Interleaved.apply(maps, True)  # type: ignore[no-any-return]


def _parts_once(weight: Tensor, bias: Tensor | None, count: int) -> tuple[Tensor, Tensor | None]:
    """What is made of both, requiring a gradient where they do, so that whoever asks for it is told."""
    given = [weight] if bias is None else [weight, bias]
    recorded = tuple(one.requires_grad for one in given)

    def made() -> list[Tensor]:
        with torch.inference_mode(False), torch.no_grad():
            found = [_parts(weight.detach()), *(one.detach().repeat(count) for one in given[1:])]
            return [one.requires_grad_(asked) for one, asked in zip(found, recorded, strict=True)]

    weight, *others = remembered(weight, given[1:], ("upsampled", recorded), made)
    return weight, others[0] if others else None


def _parts(weight: Tensor) -> Tensor:
    """(K, C, 3, 3) as (4 * K, C, 2, 2): the kernels for even rows and columns, even rows and odd columns, and so on."""
    rank = weight.dim() - 2
    parts = torch.matmul(weight.reshape(1, -1, 3**rank), _sums(rank).to(weight.dtype))
    return parts.view(-1, weight.shape[1], *(2,) * rank)


@functools.cache
def _sums(rank: int) -> Tensor:
    """(2**rank, 3**rank, 2**rank): for each of the small maps, which taps are added to make which. Even positions read
    the one before and their own, twice; odd ones their own, twice, and the one behind."""
    with torch.inference_mode(False):
        one = torch.tensor([[[1.0, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]]).transpose(1, 2)  # (map, tap, made)
        return one if rank == 1 else torch.einsum("pau,qbv->pqabuv", one, one).reshape(4, 9, 4).contiguous()


def _places(maps: Tensor, larger: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Views of each of the small maps, in (N, 2**rank * K, *(size + 1)), and of where it lies in the large one, (N, K,
    *(2 * size)): that of odd positions begins at the second."""
    rank = maps.dim() - 2
    sizes = maps.unflatten(1, (2**rank, -1))
    found = []
    for number, odd in enumerate(itertools.product((0, 1), repeat=rank)):
        inside = [slice(o, size // 2 + o) for o, size in zip(odd, larger.shape[2:], strict=True)]
        every = [slice(o, None, 2) for o in odd]
        small = sizes[:, number][(slice(None), slice(None), *inside)]
        found.append((small, larger[(slice(None), slice(None), *every)]))
    return found


def _like(made: Tensor, other: Tensor) -> Tensor:
    """`made`, which is empty or zeros, in the memory format of `other`."""
    is_turned = (
        other.dim() == 4 and not other.is_contiguous() and other.is_contiguous(memory_format=torch.channels_last)
    )
    return made.contiguous(memory_format=torch.channels_last) if is_turned else made


class _Interleaved(torch.autograd.Function):
    """The large map of the small ones; or, which is its gradient, the small ones of the large one."""

    @staticmethod
    def forward(ctx, tensor, to_larger):
        ctx.to_larger, rank = to_larger, tensor.dim() - 2
        samples, channels, *sizes = tensor.shape
        if to_larger:
            made = tensor.new_empty(samples, channels // 2**rank, *(2 * (size - 1) for size in sizes))
        else:
            made = tensor.new_zeros(samples, channels * 2**rank, *(size // 2 + 1 for size in sizes))
        made = _like(made, tensor)
        for small, place in _places(*((tensor, made) if to_larger else (made, tensor))):
            (place if to_larger else small).copy_(small if to_larger else place)
        return made

    @staticmethod
    def backward(ctx, grad):
        return _Interleaved.apply(grad, not ctx.to_larger), None
