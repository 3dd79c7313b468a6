"""Where CUTLASS's headers are, which csrc/cuda/hopper is compiled with, and how: asked by setup.py, report.py and the
tests."""

import importlib.util
import os
from pathlib import Path


def folders() -> list[Path] | None:
    """CUTLASS_HOME's, or those that the package nvidia-cutlass brings, or None."""
    home = Path(os.environ["CUTLASS_HOME"]) if os.environ.get("CUTLASS_HOME") else None
    spec = importlib.util.find_spec("cutlass_library")
    if home is None and spec is not None and spec.origin is not None:
        home = Path(spec.origin).parent / "source"
    found = [home / "include", home / "tools" / "util" / "include"] if home else []
    return found if found and all(folder.is_dir() for folder in found) else None


def flags(found: list[Path]) -> list[str]:
    """For nvcc, with these folders. CUTLASS asserts what the driver says, which would end the process: hopper.h sees to
    it that the driver has nothing to say."""
    includes = [f"-I{folder}" for folder in found]
    return ["-gencode=arch=compute_90a,code=sm_90a", "--expt-relaxed-constexpr", "-DNDEBUG", *includes]
