"""How often a norm has to go over memory, and the caches that decide it."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

from .norm_case import NormCase
from .shapes import Row

PASSES = {"forward": 3, "training": 8}
PASSES_WITH_A_GROUP_IN_CACHE = {"forward": 2, "training": 5}
_L2 = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
_USUAL_L2 = 1 << 20  # bytes, where the system does not say


def passes(row: Row, device: torch.device, kind: str) -> int:
    """How many tensors of the input's size go from or to memory, at the least.

    forward: the input is read for its statistics and again for the output, which is written: 3. training: the same
    again for the backward, where the gradient is read each time beside the input: 8. A group that stays in the cache
    of a core is read once: 2 and 5.
    """
    case = row.case
    assert isinstance(case, NormCase)
    together = case.read_together(row.input_shape(device), row.channels_last) * row.dtype.itemsize
    fits = together <= _cache_of_a_core(device)
    return (PASSES_WITH_A_GROUP_IN_CACHE if fits else PASSES)[kind]


def is_past_the_caches(row: Row, device: torch.device) -> bool:
    """Whether input and output together are larger than the second-level caches of all cores in use."""
    size = math.prod(row.input_shape(device)) * row.dtype.itemsize
    return 2 * size > _cache_of_all(device)


def _cache_of_a_core(device: torch.device) -> int:
    """In bytes: the second level on a CPU, the shared memory of a multiprocessor on a GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor
    return _second_level()


def _cache_of_all(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    return _second_level() * min(torch.get_num_threads(), os.cpu_count() or 1)


def _second_level() -> int:
    try:
        said = _L2.read_text().strip()
        return int(said.removesuffix("K")) * 1024
    except (OSError, ValueError):
        return _USUAL_L2
