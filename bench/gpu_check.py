"""The parts of `make check-gpu`, the one command for a machine with a GPU and no network: are the kernels right, and
how fast.

Each part has its own limit and goes on if another failed. What comes first is what a wrong result would spoil the rest
for. At most eight files are written.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .parts import Part

SMOKE, TIMES, LOG, SUMMARY = "smoke.json", "times.json", "log.txt", "summary.txt"
_BACKENDS = {False: ("cuda", "triton", "vendor"), True: ("cpu", "vendor", "reference")}  # by whether the run is dry
_PROFILED = "ivadomed channels_last half"
_SANITIZED = ("tutorial N=32", "CLEVR channels_last half", "GroupNorm, DDPM half", "RMSNorm, pixel diffusion half")
_KERNELS = "regex:film|forward|grad_|recompute|pass_|norm_|finish"
_NCU = ("--clock-control", "none", "--set", "full", "--import-source", "no", "--kernel-name", _KERNELS,
        "--launch-skip", "6", "--launch-count", "6", "-f")  # fmt: skip
_LOG_BYTES = 14 << 20
_DRY_SECONDS = 15.0  # at most, of a part that would use what time it has


def parts(dry: bool, out: Path) -> list[Part]:
    """All of them, in order. In a dry run the same commands try small layers on the CPU, and profilers that are not
    there are left out of theirs."""
    device = ["--device", "cpu"] if dry else []
    tiny = ["--tiny"] if dry else []
    ours = _BACKENDS[dry]

    def python(*words: str) -> list[str]:
        return [sys.executable, *words]

    def until(seconds: float) -> str:
        return f"{min(seconds, _DRY_SECONDS) if dry else seconds:.0f}"

    def one_layer(backend: str, *words: str) -> list[str]:
        return python("-m", "bench.one_layer", backend, *words, *device, *tiny)

    def profiled(backend: str) -> Callable[[float], Sequence[str]]:
        words = [*_tool("ncu", *_NCU, "-o", str(out / backend)), *one_layer(backend, _PROFILED)]
        return lambda seconds: words

    def sanitized(tool: str) -> Callable[[float], Sequence[str]]:
        words = _tool("compute-sanitizer", "--tool", tool, "--error-exitcode", "9")
        words += python("-m", "bench.one_layer", ours[0], *_SANITIZED, "--tiny", "--steps", "1", *device)
        return lambda seconds: words

    tests = ["-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "tests/gpu"]
    return [
        Part("libraries", lambda seconds: python("-m", "bench.libraries"), 0.37),
        Part("smoke", lambda seconds: python("-m", "bench.smoke", *ours, *device, *tiny, "--seconds",
                                             until(0.8 * seconds), "--out", str(out / SMOKE)), 0.22),
        Part("tests", lambda seconds: python(*tests), 0.25),
        Part("times", lambda seconds: python("-m", "bench.first_times", *device, *tiny, "--seconds",
                                             until(0.85 * seconds), "--out", str(out / TIMES)), 0.55),
        *(Part(f"profile {backend}", profiled(backend), 0.3) for backend in ours[:2]),
        *(Part(tool, sanitized(tool), 0.45) for tool in ("memcheck", "racecheck")),
    ]  # fmt: skip


def _tool(name: str, *words: str) -> list[str]:
    """The words that put a command under a tool; none where it is not installed."""
    return [name, *words] if shutil.which(name) else []


def tail(log: Path) -> None:
    """Leave the end of a log that is too long to be sent."""
    size = log.stat().st_size
    if size > _LOG_BYTES:
        with log.open("rb") as file:
            file.seek(size - _LOG_BYTES)
            end = file.read()
        log.write_bytes(end)


def variables() -> dict[str, str]:
    """What the parts' environment has beside this one's: compiled kernels are kept in the checkout, and CUDA's are
    loaded when they are called."""
    here = Path(__file__).resolve().parents[1]
    return {
        "PYTHONUNBUFFERED": "1", "CUDA_MODULE_LOADING": "LAZY",
        "TRITON_CACHE_DIR": os.environ.get("TRITON_CACHE_DIR", str(here / "build" / "triton-cache")),
    }  # fmt: skip
