"""What is known of a node of a graph: what it calls, and a fake tensor or the like for its result."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor, fx, nn

_SHAPE_METHODS = {"size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "is_contiguous",
                  "is_floating_point", "is_complex", "get_device", "element_size", "sym_size", "sym_numel"}  # fmt: skip
_SHAPE_ATTRIBUTES = {"shape", "ndim", "dtype", "device", "layout", "requires_grad", "is_cuda", "is_leaf", "is_sparse",
                     "is_quantized", "is_meta", "itemsize", "nbytes", "names", "grad_fn"}  # fmt: skip


def target_of(node: fx.Node) -> Any:
    """What `node` calls: a function, the name of a method, or the class of a module."""
    if node.op == "call_module":
        return type(module_of(node))
    return node.target if node.op in ("call_function", "call_method") else None


def module_of(node: fx.Node) -> Any:
    """The module that `node` calls, or None."""
    owner = node.graph.owning_module
    return owner.get_submodule(str(node.target)) if node.op == "call_module" and owner is not None else None


def word_of(node: fx.Node) -> str:
    """The name of what `node` calls, however it is called, and without the sign of a change in place; "" where it
    writes its result into another tensor."""
    if node.op not in ("call_function", "call_method") or node.kwargs.get("out") is not None:
        return ""
    return str(getattr(node.target, "__name__", node.target)).removesuffix("_")


def is_one_of(target: Any, choices: Any) -> bool:
    """Whether `target` is among `choices`; what has no hash is not."""
    try:
        return target in choices
    except TypeError:
        return False


def arguments_of(node: fx.Node, names: tuple[str, ...]) -> dict[str, Any]:
    """The arguments of a call, those without a name under `names`."""
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def first_argument(node: fx.Node) -> fx.Node | None:
    """What a call does something to, where that is the result of a node."""
    first = arguments_of(node, ("input",)).get("input")
    return first if isinstance(first, fx.Node) else None


def known_value(node: fx.Node) -> Any:
    """What the graph knows of `node`'s result: a fake tensor, several, a symbolic number, an attribute, or None."""
    if node.op == "get_attr" and "example_value" not in node.meta:
        value: Any = node.graph.owning_module
        for name in str(node.target).split("."):
            value = getattr(value, name)
        return value
    return node.meta.get("example_value")


def is_parameter(node: fx.Node) -> bool:
    """Whether `node` is a parameter or a buffer of the model."""
    is_input = node.op == "placeholder" and (isinstance(known_value(node), nn.Parameter) or "is_buffer" in node.meta)
    return is_input or node.op == "get_attr"


def note_buffers(graph: fx.Graph) -> None:
    """Mark the inputs of a graph of Dynamo's that are buffers of the model: where they come from is known only while
    Dynamo compiles."""
    for node in graph.nodes:
        source = getattr(node.meta.get("grapharg"), "source", None)
        if source is not None and "._buffers[" in source.name:
            node.meta["is_buffer"] = True


def tensor_of(node: Any) -> Tensor | None:
    """The tensor, or fake tensor, that tells shape and dtype of `node`'s result, where it is known."""
    value = known_value(node) if isinstance(node, fx.Node) else None
    return value if isinstance(value, Tensor) else None


def storage_of(tensor: Tensor) -> int | None:
    """What tells the memory of one tensor, fake or not, from that of others; None for a layout that has none of its
    own: sparse, nested."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return None


def nodes_in(value: Any) -> list[Any]:
    """The nodes in an argument, which may be a list of them."""
    found: list[fx.Node] = []
    fx.map_arg(value, lambda node: found.append(node))
    return found


def same(a: Any, b: Any) -> bool:
    """Whether two sizes, perhaps symbolic, are known to be equal; asking adds no guard."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # sympy takes long to import

    return statically_known_true(a == b)


def same_shape(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are known to have the same shape."""
    return a.dim() == b.dim() and all(same(x, y) for x, y in zip(a.shape, b.shape, strict=True))


def users_of_values(node: fx.Node) -> list[fx.Node]:
    """Who needs the values of `node`: not those who ask for its shape alone, as `gamma.expand_as(x)` and `x.data.shape`
    do, nor what a matcher has written anew."""
    return [user for user in node.users if "written_anew" not in user.meta and not asks_for_the_shape(user, node)]


def asks_for_the_shape(user: fx.Node, node: fx.Node) -> bool:
    """Whether `user` needs no more of `node` than its shape, dtype or device."""
    if user.target is getattr:
        return user.args[1] in _SHAPE_ATTRIBUTES or (user.args[1] == "data" and not users_of_values(user))
    if user.op == "call_method" and (user.target in _SHAPE_METHODS or (user.target == "type" and len(user.args) == 1)):
        return True
    if user.op == "call_method" and user.target in ("expand_as", "view_as", "reshape_as", "type_as", "to"):
        return user.args[0] is not node
    if getattr(user.target, "__name__", "") == "_get_data_attr" or user.target == "detach":
        return not users_of_values(user)
    return user.target in (operator.is_, operator.is_not)
