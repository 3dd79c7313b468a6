"""Whether the CPU kernels of this process multiply tiles (AMX)."""

import torch

from film_kernels import available_backends


def has_tiles() -> bool:
    """By the processor or by the engine in plain C++."""
    if available_backends()["cpu"] is not None:
        return False
    return torch.ops.film_kernels_cpu.instruction_sets().startswith(("amx", "emulated_amx"))
