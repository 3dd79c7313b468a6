"""What a node of a graph changes in place, and which tensors share memory.

A node is taken for harmless only where something says so: the schema of PyTorch's operator of that name, the signature
of a function of `torch.nn.functional`, Python's own operators, a module's `inplace`. Whatever else stands in a graph
has an effect that is not known.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .nodes import known_value, module_of, nodes_in, same_shape, storage_of, tensor_of

_IN_PLACE_OPERATORS = {
    operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.ipow, operator.imod,
    operator.iand, operator.ior, operator.ixor, operator.imatmul, operator.ilshift, operator.irshift,
    operator.setitem, operator.delitem,
}  # fmt: skip
_READING_MODULES = ("_operator", "builtins", "math", "torch.functional")
_READING = {"_get_data_attr", "_assert", "_assert_async", "is_grad_enabled", "promote_types", "result_type",
            "_log_api_usage_once", "Tensor"}  # fmt: skip
_ABOUT_SIZES = ("sym_", "_sym_", "_check")
_WRITING_METHODS = {"backward", "register_hook", "resize", "resize_as", "share_memory_"}
_WRITING_BUILTINS = {"setattr", "delattr", "exec", "eval", "next"}
_STATISTICS = ("running_mean", "running_var")

Touched = fx.Node | Tensor


def changed_by(node: fx.Node) -> list[Touched] | None:
    """The tensors that `node` changes in place; None where that is not known."""
    if node.op == "call_module":
        return _changed_by_module(node)
    if node.op not in ("call_function", "call_method"):
        return []
    written = nodes_in(node.kwargs.get("out"))
    target = node.target
    if node.op == "call_method":
        found = _changed_by_method(node, str(target))
    elif isinstance(target, torch._ops.HigherOrderOperator):
        bodies = [known_value(arg) for arg in nodes_in((node.args, node.kwargs))]
        graphs = [body for body in bodies if isinstance(body, fx.GraphModule)]
        reads_only = graphs and all(changed_by(inner) == [] for body in graphs for inner in body.graph.nodes)
        found = [] if reads_only else nodes_in((node.args, node.kwargs))  # nothing else can be reached
    elif target in _IN_PLACE_OPERATORS:
        found = nodes_in(node.args[:1])
    else:
        found = _changed_by_function(node, target)
    return None if found is None else [*found, *written]


def returns_first_argument(node: fx.Node) -> bool:
    """Whether the result of `node` is its first argument, changed: `add_`, `relu(inplace=True)`, `+=`."""
    if not node.args or not isinstance(node.args[0], fx.Node) or changed_by(node) != [node.args[0]]:
        return False
    if "example_value" not in node.meta:  # by the custom of PyTorch's own
        return node.target not in (operator.setitem, operator.delitem) and not isinstance(
            node.target, torch._ops.OpOverload | torch._ops.OpOverloadPacket
        )
    before, after = tensor_of(node.args[0]), tensor_of(node)
    return (
        before is not None and after is not None and same_shape(before, after) and may_share_memory(node, node.args[0])
    )


def may_share_memory(a: Touched, b: Touched) -> bool:
    """Whether a change of one may be seen in the other: by their storages, where both are known, otherwise by what they
    were made of."""
    ours, theirs = _storages(a), _storages(b)
    if ours is not None and theirs is not None:
        return not ours.isdisjoint(theirs)
    return not _origins(a).isdisjoint(_origins(b))


def _changed_by_module(node: fx.Node) -> list[Touched] | None:
    module = module_of(node)
    if not type(module).__module__.startswith("torch.nn."):
        return None
    found: list[Touched] = [*nodes_in(node.args[:1])] if getattr(module, "inplace", False) else []
    if isinstance(module, nn.modules.batchnorm._NormBase) and module.training:
        found += [buffer for buffer in (module.running_mean, module.running_var) if buffer is not None]
    if getattr(module, "max_norm", None) is not None:  # an embedding that shortens its own rows
        found.append(module.weight)
    return found


def _changed_by_method(node: fx.Node, name: str) -> list[Touched] | None:
    by_schema = _by_schemas(node, _schemas(name))
    if by_schema is not None:
        return by_schema
    if not hasattr(Tensor, name) or name in _WRITING_METHODS:
        return None
    in_place = name == "__setitem__" or (name.startswith("__i") and name not in ("__invert__", "__index__", "__int__"))
    return nodes_in(node.args[:1]) if in_place or (name.endswith("_") and not name.endswith("__")) else []


def _changed_by_function(node: fx.Node, target: Any) -> list[Touched] | None:
    if isinstance(target, torch._ops.OpOverload):
        return _by_schemas(node, (target._schema,))
    if isinstance(target, torch._ops.OpOverloadPacket):
        return _by_schemas(node, tuple(getattr(target, name)._schema for name in target.overloads()))
    name, home = getattr(target, "__name__", ""), getattr(target, "__module__", None) or ""
    if inspect.isfunction(target) and home == F.__name__:
        return _changed_by_functional(node, target)
    if inspect.ismethoddescriptor(target) and hasattr(Tensor, name):
        return _changed_by_method(node, name)
    if home == "torch" or home.startswith("torch._C"):
        by_schema = _by_schemas(node, _schemas(name))
        if by_schema is not None:
            return by_schema
    known = home in _READING_MODULES or home.partition(".")[0] == "einops"
    known = known or (home.partition(".")[0] == "torch" and (name in _READING or name.startswith(_ABOUT_SIZES)))
    return [] if known and name not in _WRITING_BUILTINS else None


def _changed_by_functional(node: fx.Node, target: Any) -> list[Touched] | None:
    try:
        given = _signature(target).bind(*node.args, **node.kwargs).arguments
    except (TypeError, ValueError):
        return None
    found = nodes_in(next(iter(given.values()))) if given.get("inplace") else []
    if given.get("max_norm") is not None:
        found += nodes_in(given.get("weight"))
    if given.get("training") or given.get("use_input_stats"):
        found += [one for name in _STATISTICS for one in nodes_in(given.get(name))]
    return found


@functools.cache
def _signature(function: Any) -> inspect.Signature:
    return inspect.signature(function)


@functools.cache
def _schemas(name: str) -> tuple[Any, ...]:
    packet = getattr(torch.ops.aten, name, None)
    return () if packet is None else tuple(getattr(packet, overload)._schema for overload in packet.overloads())


def _by_schemas(node: fx.Node, schemas: tuple[Any, ...]) -> list[Touched] | None:
    """What any of `schemas` says that a call like `node` writes into; None without schemas. What is written into by
    name alone is the `out` of the call, which is looked for elsewhere."""
    if not schemas:
        return None
    found: dict[fx.Node, None] = {}
    for schema in schemas:
        for position, argument in enumerate(schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write or "Tensor" not in str(argument.type):
                continue
            if argument.name in node.kwargs:
                given = node.kwargs[argument.name]
            elif argument.kwarg_only or position >= len(node.args):
                continue
            else:
                given = node.args[position]
            found.update(dict.fromkeys(nodes_in(given)))
    return list(found)


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _tensors_in(one)


def _storages(value: Touched) -> frozenset[int] | None:
    """The storages behind a tensor or a node's result, fake ones in Dynamo's graphs; None where they are not known. A
    dropout that does nothing gives back what it was given, which a fake tensor does not tell."""
    found = _storages_as_known(value)
    if not isinstance(value, fx.Node) or found is None:
        return found
    todo, seen = [value], {value}
    while todo:
        node = todo.pop()
        dropout = "dropout" in str(getattr(node.target, "__name__", node.target))
        for one in node.all_input_nodes:
            behind = _storages_as_known(one) or frozenset()
            if one not in seen and (dropout or not behind.isdisjoint(found)):
                found |= behind
                seen.add(one)
                todo.append(one)
    return found


def _storages_as_known(value: Touched) -> frozenset[int] | None:
    known = known_value(value) if isinstance(value, fx.Node) else value
    if known is None:
        return None
    found = [storage_of(tensor) for tensor in _tensors_in(known)]
    return None if None in found else frozenset(one for one in found if one is not None)


def _origins(value: Touched, seen: dict[Touched, frozenset[Any]] | None = None) -> frozenset[Any]:
    """What `value` may be a view of, or be: storages and nodes."""
    storages = _storages(value)
    own: frozenset[Any] = storages if storages is not None else frozenset()
    if not isinstance(value, fx.Node):
        return own
    seen = {} if seen is None else seen
    if value not in seen:
        seen[value] = own | {value}
        if _may_return_a_view(value):
            seen[value] |= frozenset().union(*(_origins(node, seen) for node in value.all_input_nodes))
    return seen[value]


def _may_return_a_view(node: fx.Node) -> bool:
    if node.op in ("placeholder", "get_attr", "output"):
        return False
    if node.op == "call_module" or inspect.isfunction(node.target):
        return True  # nn.Identity, F.dropout in eval
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    schemas = _schemas(str(name))
    if not schemas:
        return True
    return any(one.alias_info is not None for schema in schemas for one in schema.returns)
