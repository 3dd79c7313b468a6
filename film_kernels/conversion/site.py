"""`Site`: one place in a model where FiLM stands."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import fx

from .match import Match
from .reasons import in_words
from .records import Other

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')  # as Python prints tracebacks
_TORCH = str(Path(torch.__file__).parent)


@dataclass(frozen=True)
class Site:
    """One place where a convolution's output, or a norm's, meets a scale and shift per sample and channel, or where a
    norm's output meets an activation.

    path: of the convolution's module in the model, or of the module whose forward calls the function; of the norm's
        where there is no convolution.
    source: "file:line" of the FiLM, or of the activation where there is none.
    order: the operations as found: ("conv2d", "batch_norm", "film", "relu").
    fusable: whether `film_kernels.fuse` makes one call of it.
    reason: why not, in a sentence; None where it is fusable.
    operator: which call, "conv_film" (from the convolution on) or "norm_film" (from the last norm in front of FiLM on,
        behind an unchanged convolution); None where it is not fusable.
    """

    path: str
    source: str
    order: tuple[str, ...]
    fusable: bool
    reason: str | None = None
    operator: str | None = None


def site_of(match: Match, names: Mapping[int, str], training: bool) -> Site:
    """`match` as a user sees it; `names` has the path of each module by its id, and `training` says whether any of
    them is in that mode."""
    is_input = isinstance(match.root, Other) and match.root.node.op == "placeholder"
    place = match.nodes[-1] if match.film is None else match.film
    path = _path(place if is_input else match.root.node, names)
    reason = in_words(match.reason, training)
    return Site(path, _source(place), match.order, reason is None, reason, None if reason else match.operator)


def _path(node: fx.Node, names: Mapping[int, str]) -> str:
    if node.op == "call_module":
        return str(node.target)
    for key, (path, _) in reversed(list(node.meta.get("nn_module_stack", {}).items())):
        identity = key.partition("@")[0]  # of the second call of a module, "...@1"
        if not identity.isdecimal():
            return path  # torch.fx's
        if int(identity) in names:  # Dynamo's
            return names[int(identity)]
    return ""


def _source(node: fx.Node) -> str:
    frames = [(file, line) for file, line in _FRAME.findall(node.stack_trace or "") if not file.startswith(_TORCH)]
    return ":".join(frames[-1]) if frames else ""
