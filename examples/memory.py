"""What autograd keeps between forward and backward."""

from __future__ import annotations

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


def kept_bytes(network: nn.Module, *inputs: Tensor) -> int:
    """Bytes that autograd keeps after `network(*inputs)`, apart from the inputs and the parameters."""
    known = {t.untyped_storage().data_ptr() for t in (*inputs, *network.parameters())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        output = network(*inputs)
    output.sum().backward()  # also warms up what the first step would otherwise be charged for
    network.zero_grad()
    return sum(kept.values())
