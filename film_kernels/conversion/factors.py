"""What multiplies a convolution's result, or is added to it: a value per sample and channel, a constant, or a map."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from .nodes import known_value, same, storage_of, tensor_of

_NUMBERS = (int, float, torch.SymInt, torch.SymFloat)
_EXPANSIONS = ("expand", "expand_as", torch.broadcast_to, "broadcast_to")
_REPETITIONS = ("repeat", "tile", torch.tile)
CONVERSIONS = ("to", "type", "type_as", "float", "half", "bfloat16", "double", "contiguous", "cuda", "cpu")
_WITH_NUMBERS = (operator.add, operator.mul, torch.add, torch.mul, "add", "mul")
_OF_EACH_ELEMENT = {
    "sigmoid", "tanh", "exp", "relu", "silu", "softplus", "neg", "abs", "sqrt", "square", "clone", "contiguous",
    "float", "half", "bfloat16", "double", "to", "type", "type_as", "clamp", "add", "mul", "sub", "truediv", "div",
}  # fmt: skip


@dataclass(frozen=True)
class Factor:
    """`kind` is "channel" (one value per channel that comes with the call: of each sample or of all), "learnt" (one per
    channel, the same for all samples, from parameters alone), "fixed" (the same, from buffers alone), "constant" (one
    number), "map" (varies over positions), "point" (one position of a map that has no others, or one value per channel:
    the code does not tell), "other", or "unknown" where shapes are not known; `value` is the node,
    without its expansion; `copied_by` are the nodes that copied it on the way to where it is used."""

    kind: str
    value: Any
    copied_by: tuple[fx.Node, ...] = ()

    @property
    def is_of_all_samples(self) -> bool:
        """Whether weight and bias can take it in."""
        return self.kind in ("learnt", "fixed", "constant")


class Factors:
    """What stands beside the tensors of one graph. Each value is freed from its expansion once."""

    def __init__(self) -> None:
        self._unexpanded: dict[fx.Node, tuple[fx.Node, tuple[fx.Node, ...]]] = {}
        self._origins: dict[fx.Node, str] = {}

    def of(self, value: Any, result: Tensor | None, spatial_rank: int, channels: int = 1) -> Factor:
        """What `value` is beside a tensor of the shape of `result`, if that is known; `channels` is the dimension of
        the channels, 1 or -1."""
        if isinstance(value, _NUMBERS) or (isinstance(value, fx.Node) and isinstance(known_value(value), _NUMBERS)):
            return Factor("constant", value)
        if not isinstance(value, fx.Node):
            return Factor("other", value)
        if value not in self._unexpanded:
            self._unexpanded[value] = _without_expansion(value)
        value, copied_by = self._unexpanded[value]
        return Factor(self._kind(value, result, spatial_rank, channels), value, copied_by)

    def _kind(self, value: fx.Node, result: Tensor | None, spatial_rank: int, channels: int) -> str:
        tensor = tensor_of(value)
        if tensor is None or result is None:
            known = trailing_ones(value) >= spatial_rank
            if tensor is not None:  # a parameter
                known = known or tensor.dim() == 0 or tuple(tensor.shape[-spatial_rank:]) == (1,) * spatial_rank
            return self._origin(value) if known and channels == 1 else "unknown"
        if result.dim() < 3 or tensor.dim() > result.dim():
            return "other"
        batch, number, *positions = _channels_first(
            (1,) * (result.dim() - tensor.dim()) + tuple(tensor.shape), channels
        )
        samples, all_channels, *all_positions = _channels_first(tuple(result.shape), channels)
        if not any(same(batch, size) for size in (1, samples)):
            return "other"
        if not all(same(size, 1) for size in positions):
            return "map"
        if not same(number, all_channels):
            return "constant" if same(batch, 1) and same(number, 1) else "other"
        origin = self._origin(value) if same(batch, 1) else "channel"
        is_one_position = all(same(size, 1) for size in all_positions)
        return "point" if origin == "channel" and is_one_position and trailing_ones(value) < spatial_rank else origin

    def _origin(self, value: fx.Node) -> str:
        if value not in self._origins:
            self._origins[value] = _origin(value)
        return self._origins[value]


def _channels_first(shape: tuple[Any, ...], channels: int) -> tuple[Any, ...]:
    return shape if channels == 1 else (shape[0], shape[-1], *shape[1:-1])


def _without_expansion(value: fx.Node) -> tuple[fx.Node, tuple[fx.Node, ...]]:
    """What `value` expands to the shape of another tensor: broadcasting does that anyway; and the nodes on the way that
    copied it. It is looked for behind sums and products with numbers too, `1 + gamma.expand_as(x)`, and behind slices
    of the first two dimensions, `film.expand_as(x)[:, :n]`, which are then written anew."""
    copied: tuple[fx.Node, ...] = ()
    while _calls(value, _EXPANSIONS) or is_conversion_to_itself(value) or _repeats_ones(value):
        copied += (value,) if _calls(value, _REPETITIONS) else ()
        value = value.args[0]  # type: ignore[assignment]
    if _is_part_by_channel(value):
        return _part_of_unexpanded(value, copied)
    operands = [arg for arg in value.args if isinstance(arg, fx.Node)]
    if value.target not in _WITH_NUMBERS or len(operands) != 1 or len(value.args) != 2 or value.kwargs:
        return value, copied
    inner, copied_before = _without_expansion(operands[0])
    if inner is operands[0]:
        return value, copied
    args = tuple(inner if arg is operands[0] else arg for arg in value.args)
    with value.graph.inserting_after(value):
        again = value.graph.create_node(value.op, value.target, args)
    again.meta.update(inner.meta, written_anew=True)  # the shape of `inner`
    return again, copied_before + copied


def _is_part_by_channel(value: fx.Node) -> bool:
    """Whether `value` is a part of a tensor by slices of samples and channels."""
    if value.target is not operator.getitem or value.op != "call_function":
        return False
    index = value.args[1] if isinstance(value.args[1], tuple) else (value.args[1],)
    return len(index) <= 2 and all(isinstance(item, slice) for item in index)


def _part_of_unexpanded(value: fx.Node, copied: tuple[fx.Node, ...]) -> tuple[fx.Node, tuple[fx.Node, ...]]:
    source, index = value.args
    assert isinstance(source, fx.Node)
    inner, copied_before = _without_expansion(source)
    whole, small = tensor_of(source), tensor_of(inner)
    if inner is source:
        return value, copied
    known = whole is not None and small is not None
    if known and (small.dim() != whole.dim() or not all(map(same, small.shape[:2], whole.shape[:2]))):  # type: ignore[union-attr]
        return value, copied  # what is sliced has been repeated there too
    with value.graph.inserting_after(value):
        again = value.graph.call_function(operator.getitem, (inner, index))
    again.meta.update(inner.meta, written_anew=True)
    if known:
        again.meta["example_value"] = small[index]  # type: ignore[index]
    return again, copied_before + copied


def is_of_a_factor(node: fx.Node) -> bool:
    """Whether `node` is one of the operations that `_without_expansion` looks behind, which change nothing in place."""
    targets = (_EXPANSIONS, _WITH_NUMBERS, _REPETITIONS, CONVERSIONS)
    return _is_part_by_channel(node) or any(_calls(node, some) for some in targets)


def _calls(node: fx.Node, targets: tuple[Any, ...]) -> bool:
    return node.op in ("call_function", "call_method") and node.target in targets


def is_conversion_to_itself(node: fx.Node) -> bool:
    """Whether `node` is `x.float()` of a float32, `x.contiguous()` of a contiguous tensor, and the like: its result is
    the tensor itself. Where nothing is known of shapes and dtypes, it is taken for one."""
    if node.op != "call_method" or node.target not in CONVERSIONS:
        return False
    before, after = tensor_of(node.args[0]), tensor_of(node)
    if before is None or after is None:
        return True
    return (
        after.dtype == before.dtype
        and after.device == before.device
        and storage_of(after) == storage_of(before) is not None
    )


def _repeats_ones(node: fx.Node) -> bool:
    """Whether `node` repeats its tensor only along dimensions of size 1, as broadcasting would."""
    if not _calls(node, _REPETITIONS) or node.kwargs:
        return False
    source, *counts = node.args
    if len(counts) == 1 and isinstance(counts[0], (tuple, list)):
        counts = list(counts[0])
    tensor = tensor_of(source)
    sizes = [1] * trailing_ones(source) if tensor is None else list(tensor.shape)
    missing = len(counts) - len(sizes)  # dimensions that are new, or of which nothing is known
    if tensor is None and any(not same(count, 1) for count in counts[: max(missing, 0)]):
        return False
    pairs = zip(reversed(counts), reversed(sizes), strict=False)
    return all(same(count, 1) or same(size, 1) for count, size in pairs)


def _origin(value: fx.Node) -> str:
    """ "channel" where `value` depends on what the model is called with, otherwise "learnt" or "fixed"."""
    todo, seen, learnt = [value], {value}, False
    while todo:
        node = todo.pop()
        known = known_value(node)
        if isinstance(known, _NUMBERS):
            continue  # a size, which tells nothing of where the values are from
        if node.op in ("placeholder", "get_attr"):
            if isinstance(known, nn.Parameter):
                learnt = True
            elif node.op == "placeholder" and "is_buffer" not in node.meta:
                return "channel"
        new = [one for one in node.all_input_nodes if one not in seen]
        seen.update(new)
        todo += new
    return "learnt" if learnt else "fixed"


def trailing_ones(node: Any, of_operands: Callable[[Iterable[int]], int] = max) -> int:
    """How many dimensions of size 1 the shape of `node`'s result ends in, as far as the code alone tells it. Of a sum
    or product it is what `of_operands` says: `max` where those of which nothing is told are taken for numbers, `min`
    where they may be anything."""
    if not isinstance(node, fx.Node) or not node.args:
        return 0
    source, *rest = node.args
    if node.target in (operator.getitem, torch.chunk, torch.split, "chunk", "split"):
        index = rest[0] if rest else None
        if node.target is not operator.getitem or isinstance(index, int) or _is_part_by_channel(node):
            return trailing_ones(source, of_operands)  # one of the parts of what was split by channel
        count = 0
        for item in reversed(index if isinstance(index, tuple) else (index,)):
            if item is not None:
                break
            count += 1
        return count
    if node.target in ("unsqueeze", "unsqueeze_", torch.unsqueeze):
        dim = rest[0] if rest else node.kwargs.get("dim")
        return trailing_ones(source, of_operands) + 1 if dim == -1 or (isinstance(dim, int) and dim >= 2) else 0
    if node.target in ("view", "reshape", torch.reshape):
        sizes = rest[0] if rest and isinstance(rest[0], (tuple, list)) else rest
        count = 0
        for size in reversed(sizes):
            if not isinstance(size, int) or size != 1:
                break
            count += 1
        return count
    if getattr(node.target, "__name__", None) == "rearrange" and isinstance(rest[:1], list) and rest:  # einops
        axes = str(rest[0]).partition("->")[2].split()
        return len(axes) - max((i + 1 for i, axis in enumerate(axes) if axis not in ("1", "()")), default=0)
    if str(getattr(node.target, "__name__", node.target)).rstrip("_") in _OF_EACH_ELEMENT:
        operands = [arg for arg in node.args if isinstance(arg, fx.Node)]
        return of_operands([trailing_ones(operand, of_operands) for operand in operands] or [0])  # 1 + gamma
    return 0
