"""Whether the CPU kernels of this process multiply tiles (AMX), or pairs of bfloat16."""

import torch

from film_kernels import available_backends


def has_tiles() -> bool:
    """By the processor or by the engine in plain C++."""
    return _uses("amx", "emulated_amx")


def has_pairs() -> bool:
    """The same of pairs."""
    return _uses("avx512_bf16", "emulated_avx512_bf16")


def _uses(*names: str) -> bool:
    if available_backends()["cpu"] is not None:
        return False
    return torch.ops.film_kernels_cpu.instruction_sets().partition(" ")[0] in names
