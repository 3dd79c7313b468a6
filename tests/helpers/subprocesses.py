"""Another Python, with the package and the tests that this one has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

import film_kernels

ROOT = Path(__file__).resolve().parents[2]  # the folder that `tests` lies in


def environment(**variables: str) -> dict[str, str]:
    """This process's environment variables and `variables`, with a PYTHONPATH that finds this film_kernels, wherever it
    was imported from, before any other, and then these tests."""
    paths = [str(Path(film_kernels.__file__).parents[1]), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **variables}


def run_python(*words: str | Path, timeout: float = 300, **variables: str) -> subprocess.CompletedProcess[str]:
    """Python with these words on its command line; what it prints is captured, and its exit code is for the caller."""
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=timeout, env=environment(**variables)
    )


def assert_same_without_the_package(model: torch.nn.Module, inputs: tuple, example: tuple, folder: Path) -> None:
    """That the model, scripted and traced with `example`, computes the same where there is no film_kernels."""
    torch.jit.save(torch.jit.script(model), str(folder / "script.pt"))
    torch.jit.save(torch.jit.trace(model, example), str(folder / "trace.pt"))
    torch.save((inputs, model(*inputs)), folder / "tensors")
    code = (
        "import sys, torch\n"
        "sys.modules['film_kernels'] = None\n"
        "inputs, expected = torch.load('tensors')\n"
        "for name in ('script.pt', 'trace.pt'):\n"
        "    torch.testing.assert_close(torch.jit.load(name)(*inputs), expected, rtol=1e-4, atol=1e-5)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=folder, check=True)
