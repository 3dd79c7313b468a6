"""`python -m film_kernels`: versions, what was built, and each backend with the reason where it is not available."""

from __future__ import annotations

import platform

import torch

from . import __version__, _library, available_backends


def main() -> None:
    print(f"film_kernels {__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    reason = _library.load("_cpu")
    built = f"built; uses {torch.ops.film_kernels_cpu.instruction_sets()}" if reason is None else reason
    print(f"compiled for the CPU ({platform.machine()}): {built}")
    print(f"compiled for CUDA: {'built' if _library.find('_cuda') else 'not built: setup.py says why'}\n")
    rows = [("backend", "available"), *((name, why or "yes") for name, why in available_backends().items())]
    width = max(len(name) for name, _ in rows)
    for name, state in rows:
        print(f"{name:<{width}}  {state}")


if __name__ == "__main__":
    main()
