"""Where the tests of tests/gpu run: on a GPU, or with DRY=1 on the CPU, which tries the tests themselves."""

from __future__ import annotations

import os

import torch
from torch import Tensor

DRY = os.environ.get("DRY", "0") not in ("", "0")
DEVICE = torch.device("cpu" if DRY else "cuda")
SERVING = ("cpu", "vendor") if DRY else ("cuda", "triton", "vendor")


def place(tensor: Tensor) -> Tensor:
    """`tensor` on the device, with its strides and its place in its storage."""
    whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.detach().untyped_storage()).to(DEVICE)
    return whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def poison() -> None:
    """Memory that PyTorch hands out next holds NaN."""
    if not DRY:
        nan = [torch.full((1 << size,), float("nan"), device=DEVICE) for size in (26, *[17] * 128, *[7] * 512)]
        torch.cuda.synchronize()
        del nan
