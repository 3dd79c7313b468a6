"""Which modules of a model, and which of their methods, may hold a convolution or norm with its FiLM."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import textwrap
import types
from collections.abc import Iterator

import torch
from torch import fx, nn

from ..modules import FusedFiLM, FusedFiLM1d
from ..norm_modules import BatchNormFiLM, LayerNormFiLM, NormFiLM, RMSNormFiLM

_LAYERS = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_OURS = (FusedFiLM, FusedFiLM1d, NormFiLM, BatchNormFiLM, LayerNormFiLM, RMSNormFiLM)
_FUNCTIONS = frozenset(
    ("conv1d", "conv2d", "group_norm", "instance_norm", "layer_norm", "rms_norm", "batch_norm", "normalize")
)


def modules_to_fuse(model: nn.Module) -> Iterator[nn.Module]:
    """`model`, and those of its modules that have a convolution or norm, or the weight of a convolution, and may be
    called by themselves. Left alone are TorchScript's, what wraps a model (DistributedDataParallel, torch.compile's
    OptimizedModule), and what Dynamo is told to call as it is."""
    for module in model.modules():
        kind = type(module)
        by_name = kind.__module__.startswith("torch.nn.modules.") or isinstance(module, fx.GraphModule)
        if isinstance(module, torch.jit.ScriptModule) or _is_opaque(kind) or not (by_name or _is_users(kind)):
            continue
        is_layer = isinstance(module, _LAYERS) and not _is_users(kind)
        if module is model or (_has_layer(module) and not is_layer):
            yield module


def _is_opaque(kind: type) -> bool:
    """Whether someone has called torch.compiler.allow_in_graph of the class: Dynamo does not look into its methods."""
    dynamo = sys.modules.get("torch._dynamo")  # which takes seconds to import
    return dynamo is not None and dynamo.trace_rules.is_callable_allowed(kind)


def _is_users(kind: type) -> bool:
    """Whether someone else than PyTorch and this package has defined the class, or one that it inherits from: FSDP and
    parametrisations make subclasses of a user's classes."""
    others = ("torch", "builtins", "typing", "abc", __name__.partition(".")[0])
    return any(base.__module__.partition(".")[0] not in others for base in kind.__mro__)


def _has_layer(module: nn.Module) -> bool:
    """A convolution or norm, or what may be the weight of a convolution."""
    return any(isinstance(one, _LAYERS) for one in module.modules()) or any(
        isinstance(p, nn.UninitializedParameter) or p.dim() >= 3 for p in module.parameters()
    )


def methods_with_layers(module: nn.Module) -> Iterator[str]:
    """Names of methods, forward apart, that the user's classes define, and that call a convolution or norm of `module`
    (one of its own, or in a list or sequence of its own, or a function of PyTorch's) and return something: those that
    set layers up, freeze or load them return nothing. What has no source is not seen."""
    kind = type(module)
    if not _is_users(kind):
        return
    names = frozenset(name for name, child in module._modules.items() if _is_own_layer(child))
    torchs = {name for base in kind.__mro__ if not _is_users(base) for name in vars(base)}
    found: dict[str, bool] = {}
    for base in kind.__mro__:  # what a method overrides, it may call
        for name, function in vars(base).items():
            if name not in torchs and isinstance(function, types.FunctionType):
                found[name] = found.get(name, False) or _calls(function, names)
    yield from (name for name, calls in found.items() if calls)


def _is_own_layer(child: nn.Module | None) -> bool:
    """Whether `child` is a convolution or norm, or a list or sequence of PyTorch's with one in it. (A module of the
    user's is fused itself.)"""
    if isinstance(child, (nn.Sequential, nn.ModuleList, nn.ModuleDict)) and not _is_users(type(child)):
        return any(map(_is_own_layer, child.children()))
    return isinstance(child, _LAYERS) and not isinstance(child, _OURS)


@functools.lru_cache(maxsize=1024)
def _calls(function: types.FunctionType, names: frozenset[str]) -> bool:
    """Whether `function` returns something, is not long, and calls a convolution of PyTorch's functions or takes an
    attribute of `names` from its first argument, for more than an attribute of that, as `self.conv.weight` does."""
    plain = inspect.unwrap(function)  # behind torch.no_grad and the like
    code = getattr(plain, "__code__", None)
    if code is None or not code.co_argcount or (names | _FUNCTIONS).isdisjoint(code.co_names):
        return False
    if code.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
        return False
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(plain)))
    except (OSError, SyntaxError):  # no file, or a lambda in the middle of a line
        return False
    nodes = list(ast.walk(tree))
    parts = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    parts |= {id(node.value) for node in nodes if isinstance(node, ast.Subscript) and id(node) in parts}

    def is_layer(node: ast.AST) -> bool:
        is_own = isinstance(node, ast.Attribute) and node.attr in names and _name(node.value) == code.co_varnames[0]
        return (is_own and id(node) not in parts) or (isinstance(node, ast.Call) and _name(node.func) in _FUNCTIONS)

    def is_long(node: ast.AST) -> bool:
        """A loop over something else than those layers, as a sampler's over its steps: a graph would have them all."""
        over_others = isinstance(node, (ast.For, ast.AsyncFor)) and not any(map(is_layer, ast.walk(node.iter)))
        return isinstance(node, ast.While) or over_others

    return any(map(_is_result, nodes)) and any(map(is_layer, nodes)) and not any(map(is_long, nodes))


def _is_result(node: ast.AST) -> bool:
    return isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant)


def _name(node: ast.AST) -> str:
    """`f` of `f` and of `F.f`."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
