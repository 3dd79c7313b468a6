"""Calls of the CPU library's operators that take their options in one tensor, from those of operators that take
lists."""

from __future__ import annotations

import struct
from typing import Any

import torch

PACKED = {
    "forward": "forward_alone",
    "forward_and_copy": "forward_recorded",
    "norm_forward": "norm_forward_alone",
    "norm_forward_and_copy": "norm_forward_recorded",
}


def packed_call(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `PACKED[name]`, from those of the operator `name`."""
    left_out = ("geometry", "numbers", "channels_last", "keep")
    given = {name: value for name, value in arguments.items() if name not in left_out}
    bits = [struct.unpack("q", struct.pack("d", number))[0] for number in arguments["numbers"]]
    integers = [*arguments["geometry"], *bits, int(arguments["channels_last"])]
    return {**given, "options": torch.tensor(integers, dtype=torch.int64)}
