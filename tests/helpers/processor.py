"""What the CPU kernels of this process multiply, and how fast the processor does."""

from pathlib import Path

import torch

from film_kernels import available_backends


def has_tiles() -> bool:
    """Whether the kernels multiply tiles (AMX), by the processor or by the engine in plain C++."""
    return _uses("amx", "emulated_amx")


def has_pairs() -> bool:
    """The same of pairs of bfloat16."""
    return _uses("avx512_bf16", "emulated_avx512_bf16")


def multiplies_one_vector() -> bool:
    """Whether the processor has AVX-512 and multiplies one vector of it in a cycle, as AMD's do."""
    return torch.cpu._is_avx512_supported() and "GenuineIntel" not in Path("/proc/cpuinfo").read_text()


def _uses(*names: str) -> bool:
    if available_backends()["cpu"] is not None:
        return False
    return torch.ops.film_kernels_cpu.instruction_sets().partition(" ")[0] in names
