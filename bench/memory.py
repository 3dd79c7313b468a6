"""What autograd keeps between forward and backward, for a layer and for a network of sixteen."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .check import expect
from .conv_case import ConvCase
from .norm_case import NormCase
from .outcomes import Outcome, Timed, Untimed
from .peers import PEERS, Peer, call_of
from .runner import checked
from .shapes import Row
from .timing import Rounds, interleaved
from .work import Work, make

LAYERS = 16
NETWORKS = {  # by operator
    case.operator: Row(case)
    for case in (
        ConvCase(f"{LAYERS} layers", (16, 64, 128, 128), (64, 64, 3, 3), small=(2, 64, 32, 32), padding=1),
        NormCase(
            f"{LAYERS} norms", (16, 64, 128, 128), "group", num_groups=32, small=(2, 64, 32, 32), activation="silu"
        ),
    )
}


def kept_bytes(call: Callable[[], Tensor], known: Iterable[Tensor]) -> int:
    """Bytes of the storages that autograd saves in `call`, apart from those of `known` (inputs and parameters)."""
    ours = {t.untyped_storage().data_ptr() for t in known}
    sizes: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in ours:
            sizes[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        y = call()  # alive until its graph has been counted, so that no storage is used twice
    del y
    return sum(sizes.values())


class Network:
    """LAYERS layers of FiLM, one after the other, all by one peer, which can serve them."""

    def __init__(self, peer: Peer, works: list[Work]) -> None:
        self.input, self.grad = works[0].input, works[-1].grad
        self.parameters = [t for work in works for name, t in work.leaves.items() if name != "input"]
        self._layers = [call_of(peer, work, training=True)[0] for work in works]

    def forward(self) -> Tensor:
        """The last layer's output, of the input's shape."""
        x = self.input
        for layer in self._layers:
            x = layer(x)
        return x

    def step(self) -> tuple[Tensor, ...]:
        """The gradients of the input and of all parameters."""
        return torch.autograd.grad(self.forward(), [self.input, *self.parameters], self.grad)

    def kept_bytes(self) -> int:
        """What autograd holds when the forward is done: its part of the peak of a step, on any device."""
        return kept_bytes(self.forward, [self.input, *self.parameters])

    def peak_bytes(self) -> int | None:
        """The GPU's memory at the highest point of a step, above what was there before. None on the CPU, where PyTorch
        keeps no account."""
        if self.input.device.type != "cuda":
            return None
        self.step()  # workspaces and compiled kernels are there from now on
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


def measure_networks(
    row: Row, names: tuple[str, ...], device: torch.device, seconds: float, rounds: Rounds
) -> dict[str, Outcome]:
    """An Outcome for each peer: the seconds of a training step of its network, and the bytes as `about`."""
    works = [make(row, device, seed) for seed in range(LAYERS)]
    expected = expect(works[0], "training")
    found = {name: checked(PEERS[name], works[0], "training", expected) for name in names}
    networks = {name: Network(PEERS[name], works) for name, one in found.items() if not isinstance(one, Untimed)}
    about = {name: {"kept_bytes": n.kept_bytes(), "peak_bytes": n.peak_bytes()} for name, n in networks.items()}
    steps: dict[str, Callable[[], object]] = {name: network.step for name, network in networks.items()}
    times = interleaved(steps, device, seconds, rounds._replace(least=2))  # long steps: the memory matters more here
    return {name: one if isinstance(one, Untimed) else Timed(times[name], about[name]) for name, one in found.items()}
