"""What stands in a chain, as records: a convolution, norms, activations, scales and shifts, and what changes nothing.

`name` is what a listing calls a step, "" where it is not listed; `reason` says why no kernel can take it in, and is
None where one can. Values are nodes of the graph, tensors of a module that the graph calls, or numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from .reasons import Reason


@dataclass(frozen=True)
class Convolution:
    """`arguments` are those of `torch.nn.functional.conv2d` where the graph calls a function, the input alone where it
    calls a module. `cut` says that the convolution stands in another graph than what follows it, so that `node` is the
    input by which its result comes in."""

    node: fx.Node
    rank: int  # spatial
    transposed: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    cut: bool = False

    @property
    def name(self) -> str:
        return f"conv{'_transpose' if self.transposed else ''}{self.rank}d"

    @property
    def reads(self) -> list[fx.Node]:
        """The nodes whose results the convolution reads."""
        return _nodes(self.arguments.values())


@dataclass(frozen=True)
class Norm:
    """A normalisation of the result of `source` that ends at `node`, which has its affine in it where it is a layer.

    kind: "group", "instance", "layer", "batch", "rms", "l2" (`torch.nn.functional.normalize`), "local_response", or
        "statistics" where it is written out and only that much is known.
    spelling: "module", "function", or "written" (out of other operations, or in another layout).
    channels: the dimension of the channels, 1 or -1, of which there is one `weight` and `bias` each.
    dims: the dimensions that are normalised over, counted from 0 or from the end as the model has them; None where
        they are not known, or where the kind tells.
    inside: where it is written out, the nodes that compute it, in their order.
    training: of "batch" and "instance": whether the statistics are those of what comes in, or `running_mean` and
        `running_var`. `is_synchronised`: whether they are those of all processes.

    Whether a kernel takes it in depends on what stands around it (norm_calls.py).
    """

    node: fx.Node
    source: fx.Node
    kind: str
    name: str
    spelling: str
    channels: int = 1
    dims: tuple[int, ...] | None = None
    groups: Any = None
    eps: Any = None
    weight: Any = None
    bias: Any = None
    running_mean: Any = None
    running_var: Any = None
    training: Any = True
    momentum: Any = 0.1
    is_synchronised: bool = False
    inside: tuple[fx.Node, ...] = ()
    reason = None

    @property
    def is_batch_norm(self) -> bool:
        """Whether in eval it is a scale and a shift per channel."""
        return self.kind == "batch"

    @property
    def folds(self) -> bool:
        """Whether it is a scale and a shift per channel, that a convolution's weight and bias can take in."""
        return self.is_batch_norm and not self.training

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """Those that compute it, in their order."""
        return self.inside or (self.node,)

    @property
    def reads(self) -> list[fx.Node]:
        """The nodes whose results it reads, its input among them."""
        return [value for node in self.nodes for value in node.all_input_nodes if value not in self.nodes]


@dataclass(frozen=True)
class Activation:
    """`negative_slope` is leaky_relu's."""

    node: fx.Node
    name: str
    negative_slope: Any = 0.01
    reason: Reason | None = None

    @property
    def reads(self) -> list[fx.Node]:
        """The nodes that a fused call would read for it."""
        return _nodes((self.negative_slope,))


@dataclass(frozen=True)
class Affine:
    """A scale, a shift, or both in one operation; `inverse` where it is a division or a subtraction."""

    node: fx.Node
    scale: Any = None
    shift: Any = None
    inverse: bool = False
    reason = None

    @property
    def name(self) -> str:
        return "film" if len(self.values) == 2 else "shift" if self.scale is None else "scale"

    @property
    def values(self) -> tuple[Any, ...]:
        """The scale, the shift, or both in this order."""
        return tuple(value for value in (self.scale, self.shift) if value is not None)

    @property
    def reads(self) -> list[fx.Node]:
        """Nothing beside its factors, which are looked at one by one."""
        return []


@dataclass(frozen=True)
class Passing:
    """What leaves the values as they are: an identity, a conversion, a dropout. One that is active has a reason."""

    node: fx.Node
    name: str = ""
    reason: Reason | None = None

    @property
    def reads(self) -> list[fx.Node]:
        """Nothing beside what passes."""
        return []


@dataclass(frozen=True)
class Other:
    """What a site begins with that is neither a convolution nor a norm."""

    node: fx.Node
    name: str = ""


Root = Convolution | Norm | Other
Operation = Norm | Activation | Affine | Passing


def _nodes(values: Any) -> list[fx.Node]:
    return [value for value in values if isinstance(value, fx.Node)]
