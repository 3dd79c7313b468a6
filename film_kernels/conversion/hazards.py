"""What would make it wrong to compute a chain as one call, where its last operation stands."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from .effects import Touched, changed_by, may_share_memory, returns_first_argument

_CONTEXTS = {"_set_grad_enabled", "_enter_autocast", "_exit_autocast", "_enter_inference_mode", "_exit_inference_mode"}


def name_changed_values(graph: fx.Graph) -> None:
    """Let whoever reads a tensor after it was changed by `x.mul_(2)` or the like read the result of that change, which
    is the same tensor: so that each name in the graph stands for one value."""
    place = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if returns_first_argument(node):
            node.args[0].replace_all_uses_with(node, lambda user, here=place[node]: place[user] > here)


def what_changes_between(
    nodes: Sequence[fx.Node], reads: Sequence[tuple[Touched, fx.Node]], writes: Sequence[Touched] = ()
) -> str | None:
    """Why the chain `nodes` cannot be computed at its end: a tensor is changed after it was read, or read after it was
    changed, or the two ends stand in different contexts; None where it can. `reads` are the tensors that are read, each
    with the node that does, and `writes` those that are changed."""
    chain, readers = set(nodes), {reader for _, reader in reads}
    read: list[Touched] = []
    begun = False
    node = min((nodes[0], *readers))  # the first in the graph: what is read may be copied in front of the chain
    while node is not nodes[-1]:
        here, node = node, node.next
        begun = begun or here is nodes[0]
        if getattr(here.target, "__name__", "") in _CONTEXTS:
            if begun:
                return "what would be one call stands in different autocast or gradient modes"
            continue
        if begun and here not in chain and any(may_share_memory(a, b) for a in here.all_input_nodes for b in writes):
            return "what the norm changes is read before FiLM"
        changed = changed_by(here) if read and here not in chain else []
        if changed is None:
            return f"in front of FiLM stands {_called(here)}, of which it is not known what it changes"
        if any(may_share_memory(one, other) for one in changed for other in read):
            return "what the call would read is changed in place in between"
        if here in readers:
            read += [value for value, reader in reads if reader is here]
    return None


def _called(node: fx.Node) -> str:
    return str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
