"""The one way a kernel is started: by a plan, which holds everything of a start but tensors and is made once for their
shapes and the options.

To look up by itself what it compiled for the arguments of a call takes Triton a tenth of a millisecond, which is more
than most layers take the GPU. A plan's numbers do not change, so that what was compiled depends on the tensors' dtypes
and alignment alone, and is remembered by these.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .launch import Launch, recorded

_MOST = 16  # compiled kernels of a plan


class Plan:
    """`kernel` for `programs` programs, with every argument but its tensors."""

    def __init__(
        self,
        kernel: Any,
        programs: int,
        numbers: Mapping[str, object],
        device: torch.device,
        num_warps: int,
        num_stages: int,
    ) -> None:
        self._kernel, self._grid, self._numbers, self._device = kernel, (programs, 1, 1), numbers, device
        self._options = {"num_warps": num_warps, "num_stages": num_stages}
        self._places = {name: place for place, name in enumerate(kernel.arg_names)}
        self._ordered = [numbers.get(name) for name in kernel.arg_names]
        self._compiled: dict[tuple[object, ...], Any] = {}

    def start(self, tensors: Mapping[str, Tensor | None]) -> None:
        """On the current stream of the plan's device; `tensors` are all that the plan does not hold, always in the
        same order."""
        if self._grid[0] == 0:
            return
        launches = recorded()
        if launches is not None:
            launches.append(Launch(self._kernel, {**tensors, **self._numbers}, *self._options.values()))
            return
        ordered, kinds = self._ordered.copy(), []
        for name, tensor in tensors.items():
            ordered[self._places[name]] = tensor
            kinds.append(None if tensor is None else (tensor.dtype, tensor.data_ptr() % 16))
        key = tuple(kinds)
        with _on(self._device):
            compiled = self._compiled.get(key)
            if compiled is not None:
                compiled[self._grid](*ordered)
                return
            started = self._kernel[self._grid](**tensors, **self._numbers, **self._options)
            if hasattr(started, "packed_metadata"):  # a compiled kernel, and not the interpreter's nothing
                if len(self._compiled) >= _MOST:
                    self._compiled.clear()
                self._compiled[key] = started


_HERE = contextlib.nullcontext()


def _on(device: torch.device) -> contextlib.AbstractContextManager:
    if device.type == "cpu" or device.index is None:
        return _HERE
    module = torch.get_device_module(device)
    return _HERE if module.current_device() == device.index else module.device(device.index)
