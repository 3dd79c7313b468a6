"""Loads the compiled libraries, and remembers why one could not be."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch

DIRECTORY = Path(__file__).parent


@functools.cache
def load(name: str) -> str | None:
    """Load the library `name` ("_cpu", "_cuda") beside this file: None, or why it is not here."""
    path = find(name)
    if path is None:
        return f"the compiled library film_kernels.{name} was not built: pip install --no-build-isolation film_kernels"
    if name == "_cuda":  # it takes the current stream from there, but is built without it
        ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cuda.so"), mode=ctypes.RTLD_GLOBAL)
    return load_file(path)


@functools.cache
def load_file(path: Path) -> str | None:
    """Load the library `path`: None, or why it does not load."""
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"the compiled library {path} does not load: {error}"
    return None


def find(name: str) -> Path | None:
    """The file of the library `name`, whether it loads or not."""
    return next(
        (DIRECTORY / f for f in (f"{name}.abi3.so", f"{name}.so", f"{name}.pyd") if (DIRECTORY / f).exists()), None
    )
