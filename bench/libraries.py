"""`python -m bench.libraries`: the compiled libraries are there, built before, or are built in place now.

Those that this PyTorch could not use, CUDA's where it was built without it, are looked at for their file alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

_ROOT = Path(__file__).resolve().parents[1]
_LOAD = """
import sys, torch
from film_kernels import _library
names = [name for name in sys.argv[1:] if name != "_cuda" or torch.version.cuda is not None]
wrong = [f"{name}: {reason}" for name in names if (reason := _library.load(name)) is not None]
print("; ".join(wrong) or "loaded")
sys.exit(len(wrong))
"""


def load(names: Sequence[str]) -> str | None:
    """Why one of the libraries cannot be loaded, or None: asked in another process, for this one could load none
    twice."""
    missing = [name for name in names if not (_ROOT / "film_kernels" / f"{name}.abi3.so").exists()]
    if missing:
        return f"there is no {' and no '.join(missing)}"
    done = subprocess.run([sys.executable, "-c", _LOAD, *names], cwd=_ROOT, capture_output=True, text=True)
    return None if done.returncode == 0 else (done.stdout + done.stderr).strip()


def architecture() -> Mapping[str, str]:
    """What setup.py is told to build for: the GPU that is here."""
    if not torch.cuda.is_available():
        return {}
    major, minor = torch.cuda.get_device_capability()
    return {"TORCH_CUDA_ARCH_LIST": f"{major}.{minor}"}


def main(argv: Sequence[str] | None = None) -> int:
    """Load the libraries named (default: both), building them where that fails. 1 where it fails again."""
    names = list(sys.argv[1:] if argv is None else argv) or ["_cpu", "_cuda"]
    reason = load(names)
    if reason is not None:
        print(f"not loaded: {reason}\nbuilding", flush=True)
        words = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        built = subprocess.run(words, cwd=_ROOT, env={**os.environ, **architecture()})
        reason = load(names) if built.returncode == 0 else f"setup.py ended with exit status {built.returncode}"
    print(reason or f"{' and '.join(names)} loaded")
    return int(reason is not None)


if __name__ == "__main__":
    sys.exit(main())
